"""Encryption version 2, whose blocks can be read in parts, against version 1: size, backup, restore, mount."""

import os
import secrets
import shutil
import sys
from functools import partial

from benchmarks.figures import MIB, Result, Samples, Target, alternate, at_least, at_most, least, less_than, rates
from benchmarks.images import Image, settle
from benchmarks.measures.mount import dd_s, on_mount, second_s, settle_all, task
from benchmarks.measures.registry import REGISTRY, Bench
from benchmarks.program import Repository

VERSIONS = (2, 1)  # ours, and the version to compare with
BLOBS = 1_000_000
REKEY_S = {"with slots": 1.0, "from backy2": 60.0}


@REGISTRY.measure("encryption-backup", "first backup with encryption version 2, and what it stores, against version 1")
def backup(bench: Bench) -> list[Result]:
    image = bench.images.ext4()
    stored: dict[int, float] = {}

    def backup_s(version: int) -> float:
        repository = _init(bench, version)
        settle(image.path)
        taken_s = repository.backup(image).wall_s
        stored[version] = _stored_bytes(repository) / MIB
        return taken_s

    ours_s, reference_s = alternate(bench.repeat, *(partial(backup_s, version) for version in VERSIONS))
    sizes = [least(f"version {version}", "MiB", [stored[version]]) for version in VERSIONS]
    return [
        _result("encryption-backup", f"{image.name}, backup", *_rates(image, ours_s, reference_s), at_least(0.9)),
        _result("encryption-backup", f"{image.name}, stored", *sizes, at_most(1.06)),
    ]


@REGISTRY.measure("encryption-restore", "restore of blobs of encryption version 2, against version 1")
def restore(bench: Bench) -> list[Result]:
    image, repositories = _backed_up(bench)
    restored = os.path.join(bench.workspace.fresh("restored"), "image")

    def restore_s(repository: Repository) -> float:
        settle_all(repository)
        return second_s(lambda: repository.restore(image, restored).wall_s, lambda: os.unlink(restored))

    sides = alternate(bench.repeat, *(partial(restore_s, repository) for repository in repositories))
    return [_result("encryption-restore", image.name, *_rates(image, *sides), at_least(0.9))]


@REGISTRY.measure("encryption-random", "cold reads of 4 KiB of a mount, encryption version 2 against version 1")
def random_reads(bench: Bench) -> list[Result]:
    image, repositories = _backed_up(bench)

    def take(what: str) -> list[Samples]:
        def read(data: str) -> float:
            return task(bench, what, data)

        sides = [partial(on_mount, bench, repository, image, read) for repository in repositories]
        unit = "ms" if what == "cold-latency" else "KiB"
        return [
            least(f"version {version}", unit, values)
            for version, values in zip(VERSIONS, alternate(bench.repeat, *sides), strict=True)
        ]

    return [
        _result("encryption-random", "4 KiB, one in each block, p50", *take("cold-latency"), at_most(1 / 6)),
        _result("encryption-random", "the same, read by the mount", *take("cold-bytes"), at_most(1 / 10)),
    ]


@REGISTRY.measure("encryption-sequential", "dd of a mounted image of encryption version 2, against version 1")
def sequential(bench: Bench) -> list[Result]:
    image, repositories = _backed_up(bench)
    sides = alternate(bench.repeat, *(partial(dd_s, bench, repository, image) for repository in repositories))
    return [_result("encryption-sequential", image.name, *_rates(image, *sides), at_least(0.9))]


@REGISTRY.measure("rekey", "another configured key for a repository of a million blobs: our own, and one from backy2")
def rekey(bench: Bench) -> list[Result]:
    return [
        Result(
            measure="rekey",
            what=f"{BLOBS:,} blobs, {what}",
            ours=least("rekey", "s", _rekey_s(bench, from_backy2=what == "from backy2")),
            target=less_than(target_s),
        )
        for what, target_s in REKEY_S.items()
    ]


def _rekey_s(bench: Bench, *, from_backy2: bool) -> list[float]:
    directory = bench.workspace.fresh("repository")
    config = bench.program.init(directory).config
    database, key = (os.path.join(directory, name) for name in ("metadata.db", "backyfs.key"))
    task = [sys.executable, "-m", "benchmarks.metadata_tasks", "wrapped-keys", database, str(BLOBS)]
    bench.runner.run([*task, key] if from_backy2 else task)
    old_key, original = f"{key}.old", f"{database}.original"
    os.rename(key, old_key)
    os.rename(database, original)
    with open(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))

    def rekey_s() -> float:
        shutil.copy(original, database)
        settle(database)
        return bench.program.run("-c", config, "-q", "rekey", "--old-key-file", old_key).wall_s

    [taken_s] = alternate(bench.repeat, rekey_s)
    return taken_s


def _init(bench: Bench, version: int) -> Repository:
    repository = bench.program.init(bench.workspace.fresh(f"repository-{version}"))
    repository.set_encryption_version(version)
    return repository


def _backed_up(bench: Bench) -> tuple[Image, list[Repository]]:
    """Return the image, and a repository for each version that has it."""
    image = bench.images.ext4()
    repositories = [_init(bench, version) for version in VERSIONS]
    for repository in repositories:
        repository.backup(image)
    return image, repositories


def _stored_bytes(repository: Repository) -> int:
    folders = os.walk(os.path.join(os.path.dirname(repository.config), "data"))
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in folders for name in names)


def _rates(image: Image, *sides: list[float]) -> list[Samples]:
    return [
        rates(f"version {version}", image.size_bytes, taken_s) for version, taken_s in zip(VERSIONS, sides, strict=True)
    ]


def _result(measure: str, what: str, ours: Samples, reference: Samples, target: Target) -> Result:
    return Result(measure=measure, what=what, ours=ours, reference=reference, target=target)
