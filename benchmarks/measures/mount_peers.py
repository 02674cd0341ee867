"""Reading a mounted image, in the same run as restic and borg read theirs."""

import contextlib
import os
import time
from collections.abc import Iterator
from functools import partial

from benchmarks.figures import Result, alternate, at_least, least, rates
from benchmarks.images import SMALL_FILES, SMALL_FILES_DIRECTORY
from benchmarks.measures.mount import cold_s, dd_s, settle_all
from benchmarks.measures.registry import REGISTRY, Bench
from benchmarks.peer_programs import MountingPeer, installed
from benchmarks.runner import BenchmarkError

FASTER = 2.0
# $1: the directory. tar writes to a pipe, because it reads nothing if it writes to /dev/null.
TAR = 'find "$1" -type f -print0 | tar --null --create --files-from - | wc --bytes'


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


@REGISTRY.measure("mount-files", "find and tar of 2,000 small files in a backup, from the first command on", peers=True)
def mount_files(bench: Bench) -> list[Result]:
    others = [peer for peer in installed(bench.workspace, bench.runner) if peer.can_mount()]
    image = bench.images.files()
    repository = bench.program.init(bench.workspace.fresh("repository"))
    repository.backup(image)
    for peer in others:
        peer.init()
        peer.backup(image)

    def ours_s() -> float:
        settle_all(repository)
        directory = bench.workspace.fresh("attached")
        start_s = time.perf_counter()
        with repository.attached(image, directory):
            _tar(bench, os.path.join(directory, "data"))
            return time.perf_counter() - start_s

    def peer_s(peer: MountingPeer) -> float:
        settle_all(repository)
        start_s = time.perf_counter()
        with peer.mounted(bench.workspace.fresh("mount")) as data, _loop_mounted(bench, data) as directory:
            _tar(bench, directory)
            return time.perf_counter() - start_s

    taken_s, *peers_s = alternate(bench.repeat, ours_s, *(partial(peer_s, peer) for peer in others))
    ours = least("attach, find, tar", "s", taken_s)
    return [
        Result(measure="mount-files", what=image.name, ours=ours, reference=least(f"{peer.name} mount", "s", seconds))
        for peer, seconds in zip(others, peers_s, strict=True)
    ]


def _tar(bench: Bench, directory: str) -> None:
    run = bench.runner.run(["sh", "-c", TAR, "sh", os.path.join(directory, SMALL_FILES_DIRECTORY)])
    if int(run.stdout) < SMALL_FILES * 1024:
        raise BenchmarkError(f"tar wrote {run.stdout.strip()} bytes only")


@contextlib.contextmanager
def _loop_mounted(bench: Bench, data: str) -> Iterator[str]:
    directory = bench.workspace.fresh("files")
    bench.runner.run(["mount", "-o", "loop,ro,noload", data, directory])
    try:
        yield directory
    finally:
        bench.runner.run(["umount", directory])
