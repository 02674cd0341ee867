"""The same work done by other backup programs, in the same run: whole commands, start included."""

import os
import shutil
from dataclasses import dataclass
from functools import partial

from benchmarks.figures import Result, Samples, alternate, at_least, rates
from benchmarks.images import Image, settle
from benchmarks.measures.registry import REGISTRY, Bench
from benchmarks.peer_programs import Peer, installed
from benchmarks.program import Program, Repository
from benchmarks.runner import BenchmarkError, Run
from benchmarks.workspace import Workspace

FASTER = 2.0


@dataclass(slots=True, kw_only=True)
class Ours:
    """backyfs in the form of a peer."""

    workspace: Workspace
    program: Program
    repository: Repository | None = None
    name: str = "backyfs"

    def init(self) -> None:
        self.repository = self.program.init(self.workspace.fresh("repository"))

    def backup(self, image: Image) -> Run:
        assert self.repository is not None
        return self.repository.backup(image)

    def restore(self, image: Image, directory: str) -> Run:
        assert self.repository is not None
        return self.repository.restore(image, os.path.join(directory, os.path.basename(image.path)))


@REGISTRY.measure("peers", "first backup, unchanged backup and restore, against restic and borg", peers=True)
def peers(bench: Bench) -> list[Result]:
    others = installed(bench.workspace, bench.runner)
    if not others:
        raise BenchmarkError("no peer is installed; on Debian: apt-get install restic borgbackup")
    everyone: list[Peer] = [Ours(workspace=bench.workspace, program=bench.program), *others]
    image = bench.images.ext4()
    # The order matters: each of these uses the repositories that the previous one leaves.
    works = {
        "first backup": partial(_first_s, image),
        "unchanged backup": partial(_unchanged_s, image),
        "restore": partial(_restore_s, bench, image),
    }
    results = []
    for what, work in works.items():
        sides = [partial(work, peer) for peer in everyone]
        seconds = alternate(bench.repeat, *sides)
        results += _compared(what, image, dict(zip((peer.name for peer in everyone), seconds, strict=True)))
    return results


def _first_s(image: Image, peer: Peer) -> float:
    peer.init()
    settle(image.path)
    return peer.backup(image).wall_s


def _unchanged_s(image: Image, peer: Peer) -> float:
    settle(image.path)
    return peer.backup(image).wall_s


def _restore_s(bench: Bench, image: Image, peer: Peer) -> float:
    directory = bench.workspace.fresh("restored")
    settle()
    seconds = peer.restore(image, directory).wall_s
    [restored] = [os.path.join(folder, name) for folder, _, names in os.walk(directory) for name in names]
    bench.runner.run(["cmp", "--", image.path, restored])
    shutil.rmtree(directory)
    return seconds


def _compared(what: str, image: Image, seconds: dict[str, list[float]]) -> list[Result]:
    """Return one result per peer; the target is set against the fastest."""
    samples: dict[str, Samples] = {
        name: rates(name, image.size_bytes, values) for name, values in seconds.items()
    }
    ours = samples.pop("backyfs")
    best = max(samples.values(), key=lambda peer: peer.value)
    return [
        Result(
            measure="peers",
            what=f"{image.name}, {what}",
            ours=ours,
            reference=peer,
            target=at_least(FASTER) if peer is best else None,
        )
        for peer in samples.values()
    ]
