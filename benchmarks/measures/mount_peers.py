"""Reading a mounted image, in the same run as restic and borg read theirs."""

from functools import partial

from benchmarks.figures import Result, alternate, at_least, rates
from benchmarks.measures.mount import cold_s, dd_s, settle_all
from benchmarks.measures.registry import REGISTRY, Bench
from benchmarks.peer_programs import MountingPeer, installed
from benchmarks.runner import BenchmarkError

FASTER = 2.0


@REGISTRY.measure("mount-peers", "dd of a mounted image, against restic and borg", peers=True)
def mount_peers(bench: Bench) -> list[Result]:
    others = [peer for peer in installed(bench.workspace, bench.runner) if peer.can_mount()]
    if not others:
        raise BenchmarkError("no peer that can mount is installed; on Debian: apt-get install restic python3-pyfuse3")
    image = bench.images.ext4()
    repository = bench.program.init(bench.workspace.fresh("repository"))
    repository.backup(image)
    for peer in others:
        peer.init()
        peer.backup(image)

    def peer_s(peer: MountingPeer) -> float:
        settle_all(repository)
        with peer.mounted(bench.workspace.fresh("mount")) as data:
            command = ["dd", f"if={data}", "of=/dev/null", "bs=1M"]
            return cold_s(bench, data, lambda: bench.runner.run(command).wall_s)

    ours_s, *peers_s = alternate(
        bench.repeat, lambda: dd_s(bench, repository, image), *(partial(peer_s, peer) for peer in others)
    )
    samples = [rates(peer.name, image.size_bytes, taken_s) for peer, taken_s in zip(others, peers_s, strict=True)]
    best = max(samples, key=lambda peer: peer.value)
    return [
        Result(
            measure="mount-peers", what=image.name, ours=rates("backyfs", image.size_bytes, ours_s),
            reference=peer, target=at_least(FASTER) if peer is best else None,
        )
        for peer in samples
    ]  # fmt: skip
