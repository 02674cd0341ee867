"""Whether a storage gets the configured bandwidth: the time of a command minus that of its start."""

import os

from benchmarks.figures import MIB, Result, alternate, at_least, at_most, rates
from benchmarks.images import Image
from benchmarks.measures.registry import REGISTRY, Bench
from benchmarks.program import Repository

LIMIT_MIB = 12       # a second
STORED_MIB = 120     # ten seconds
TOLERANCE = 0.05


@REGISTRY.measure("limits", "bytes per second of a backup and a restore with a limit of bandwidth, against the limit")
def limits(bench: Bench) -> list[Result]:
    directory = bench.workspace.fresh("limits")
    image = Image(name="random", path=os.path.join(directory, "image"), size_bytes=STORED_MIB * MIB)

    def backup_s() -> float:
        with open(image.path, "wb") as file:  # new content: known blocks are not written
            file.write(os.urandom(image.size_bytes))
        return repository.backup(image).wall_s - repository.ls().wall_s

    def restore_s() -> float:
        run = repository.restore(image, os.path.join(bench.workspace.fresh("restored"), "image"))
        return run.wall_s - repository.ls().wall_s

    repository = _limited(bench.program.init(os.path.join(directory, "repository")))
    taken = alternate(bench.repeat, backup_s, restore_s)
    limit = rates("limit", LIMIT_MIB * MIB, [1.0])
    return [
        Result(
            measure="limits", what=what, ours=rates(what, image.size_bytes, sides), reference=limit, target=target,
        )
        for what, sides in zip(("backup", "restore"), taken, strict=True)
        for target in (at_least(1 - TOLERANCE), at_most(1 + TOLERANCE))
    ]  # fmt: skip


def _limited(repository: Repository) -> Repository:
    with open(repository.config, encoding="utf-8") as file:
        text = file.read()
    bytes_per_s = LIMIT_MIB * MIB
    limits = f"[DataBackend]\nbandwidth_read: {bytes_per_s}\nbandwidth_write: {bytes_per_s}"
    with open(repository.config, "w", encoding="utf-8") as file:
        file.write(text.replace("[DataBackend]", limits))
    return repository
