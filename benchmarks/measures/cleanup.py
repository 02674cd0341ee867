"""Removing a version and cleaning up after it, with more or fewer blobs that are kept; scrubbing the rest."""

import itertools
import os
import sys

from benchmarks.figures import MIB, Result, Samples, Target, alternate, at_most, least, less_than, most
from benchmarks.images import SMALL_BLOCK_BYTES, Image
from benchmarks.measures.mount import settle_all, task
from benchmarks.measures.registry import REGISTRY, Bench
from benchmarks.program import Repository
from benchmarks.runner import Run

RM_S = 0.2
RM_MIB = 80
CLEANUP_S = 5.0
NOTHING_S = 0.1
SCRUB_RATIO = 1.3
STAYING = (1_024_000, 102_400)  # blobs of a repository from which few are removed
GARBAGE_BLOCKS = 10_000
GROWTH = 2.0                    # at most, for ten times as much: rows of an index of random keys have separate pages


@REGISTRY.measure("cleanup", "rm of 100,000 blocks of 4 KiB, the cleanup that deletes them, and one that finds nothing")
def cleanup(bench: Bench) -> list[Result]:
    image = bench.images.small_blocks()
    numbers = itertools.count()  # a directory for each run, see small_blocks
    peaks_mib: list[float] = []
    whole_s: list[float] = []
    removals_s: list[float] = []
    cleanups_s: list[float] = []
    nothing_s: list[float] = []
    for _ in range(bench.repeat):
        directory = bench.workspace.fresh(f"cleanup-{next(numbers)}")
        repository = bench.program.init(directory, block_size=SMALL_BLOCK_BYTES)
        repository.backup(image)
        settle_all(repository)
        start_s = min(repository.ls().wall_s for _ in range(3))
        removal = _run(repository, "rm", f"{image.name}@latest", "--force")
        whole_s.append(removal.wall_s)
        peaks_mib.append(removal.peak_rss_bytes / MIB)
        removals_s.append(removal.wall_s - start_s)
        cleanups_s.append(_run(repository, "cleanup", "--dangerous-force").wall_s)
        nothing_s.append(min(_run(repository, "cleanup").wall_s for _ in range(3)) - start_s)
    blocks = f"{image.size_bytes // SMALL_BLOCK_BYTES:,} blocks"
    return [
        _result(blocks, least("rm less start", "s", removals_s), less_than(RM_S)),
        _result(blocks, most("peak of rm", "MiB", peaks_mib), less_than(RM_MIB)),
        _result(blocks, least("rm, whole command", "s", whole_s)),
        _result(blocks, least("cleanup, whole command", "s", cleanups_s), less_than(CLEANUP_S)),
        _result("nothing to delete", least("cleanup less start", "s", nothing_s), less_than(NOTHING_S)),
    ]


@REGISTRY.measure("cleanup-growth", "the same cleanup in a repository of a million blobs, and in one of 100,000")
def growth(bench: Bench) -> list[Result]:
    image = _part(bench.images.small_blocks(), bench.workspace.fresh("garbage"))
    larger, smaller = (_repository_of(bench, count) for count in STAYING)

    def deletes(repository: Repository) -> float:
        repository.backup(image)
        _run(repository, "rm", f"{image.name}@latest", "--force")
        settle_all(repository)
        start_s = repository.ls().wall_s
        return _run(repository, "cleanup", "--dangerous-force").wall_s - start_s

    def finds_nothing(repository: Repository) -> float:
        return min(_run(repository, "cleanup").wall_s for _ in range(3))

    deleted = alternate(bench.repeat, lambda: deletes(larger), lambda: deletes(smaller))
    nothing = alternate(bench.repeat, lambda: finds_nothing(larger), lambda: finds_nothing(smaller))
    ours, reference = (least(f"{count:,} stay", "s", values) for count, values in zip(STAYING, deleted, strict=True))
    more_s = [more - less for more, less in zip(*nothing, strict=True)]
    return [
        Result(
            measure="cleanup-growth", what=f"{GARBAGE_BLOCKS:,} blobs go",
            ours=ours, reference=reference, target=at_most(GROWTH),
        ),
        Result(
            measure="cleanup-growth", what=f"nothing goes, {STAYING[0] - STAYING[1]:,} more stay",
            ours=least("difference", "s", more_s), target=less_than(NOTHING_S),
        ),
    ]  # fmt: skip


@REGISTRY.measure("scrub", "scrub of all blobs, against two threads that open them")
def scrub(bench: Bench) -> list[Result]:
    results = []
    for image, block_size in ((bench.images.ext4(), None), (bench.images.small_blocks(), SMALL_BLOCK_BYTES)):
        repository = bench.program.init(bench.workspace.fresh(f"scrub-{image.name}"), block_size=block_size)
        repository.backup(image)
        settle_all(repository)
        start_s = min(repository.ls().wall_s for _ in range(3))
        scrubbed_s, opened_s = alternate(
            bench.repeat,
            lambda of=repository: _run(of, "-q", "scrub", "--all").wall_s,
            lambda of=repository, name=image.name: task(bench, "open-blobs", of.config, name),
        )
        ours = least("scrub less start", "s", [taken_s - start_s for taken_s in scrubbed_s])
        reference = least("open", "s", opened_s)
        results.append(
            Result(measure="scrub", what=image.name, ours=ours, reference=reference, target=at_most(SCRUB_RATIO))
        )
    return results


def _repository_of(bench: Bench, count: int) -> Repository:
    """Make a repository whose database has this number of blobs of one version, without stored objects."""
    directory = bench.workspace.fresh(f"staying-{count}")
    repository = bench.program.init(directory, block_size=SMALL_BLOCK_BYTES)
    database = os.path.join(directory, "metadata.db")
    make = [sys.executable, "-m", "benchmarks.metadata_tasks", "make-days", database, str(count), "1", "0"]
    bench.runner.run(make)
    return repository


def _part(image: Image, directory: str) -> Image:
    size_bytes = GARBAGE_BLOCKS * SMALL_BLOCK_BYTES
    path = os.path.join(directory, "garbage.img")
    with open(image.path, "rb") as source, open(path, "wb") as target:
        target.write(source.read(size_bytes))
    return Image(name="garbage", path=path, size_bytes=size_bytes)


def _run(repository: Repository, *words: str) -> Run:
    return repository.program.run("-c", repository.config, *words)


def _result(what: str, ours: Samples, target: Target | None = None) -> Result:
    return Result(measure="cleanup", what=what, ours=ours, target=target)
