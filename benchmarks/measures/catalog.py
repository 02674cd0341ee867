"""The catalog in the storage: what it costs a backup, and how fast a database is rebuilt from it."""

import itertools
import os
import sys

from benchmarks.figures import MIB, Result, alternate, least, less_than, most
from benchmarks.images import SMALL_BLOCK_BYTES, Image, settle
from benchmarks.measures.registry import REGISTRY, Bench

LIMIT_PERCENT = 2.0
RECOVERY_S = 30.0


@REGISTRY.measure("catalog", "the catalog: its part of a backup's time, and the recovery of 100,000 blocks")
def catalog(bench: Bench) -> list[Result]:
    small = bench.images.small_blocks()
    shares = [
        _share(bench, "blocks of 4 KiB", small, SMALL_BLOCK_BYTES),
        _share(bench, "blocks of 4 MiB", bench.images.random(), None),
    ]
    return [*shares, *_recovery(bench, small)]


def _share(bench: Bench, what: str, image: Image, block_size: int | None) -> Result:
    numbers = itertools.count()  # a directory for each run, see small_blocks

    def ours() -> float:
        directory = bench.workspace.fresh(f"catalog-{block_size}-{next(numbers)}")
        repository = bench.program.init(directory, block_size=block_size)
        settle(image.path)
        task = [sys.executable, "-m", "benchmarks.catalog_tasks", "share-of-backup", repository.config, image.path]
        return float(bench.runner.run(task).stdout)

    [percents] = alternate(bench.repeat, ours)
    ours_percent = least("of the backup", "%", percents)
    return Result(measure="catalog", what=what, ours=ours_percent, target=less_than(LIMIT_PERCENT))


def _recovery(bench: Bench, image: Image) -> list[Result]:
    directory = bench.workspace.fresh("catalog-recovery")
    repository = bench.program.init(directory, block_size=SMALL_BLOCK_BYTES)
    repository.backup(image)
    numbers = itertools.count()
    peaks_mib: list[float] = []

    def ours() -> float:
        target = os.path.join(directory, f"recovered-{next(numbers)}.sqlite")
        run = bench.program.run("-c", repository.config, "-q", "recover", "--to", target)
        peaks_mib.append(run.peak_rss_bytes / MIB)
        return run.wall_s

    [taken_s] = alternate(bench.repeat, ours)
    what = f"recovery of {image.size_bytes // SMALL_BLOCK_BYTES:,} blocks"
    return [
        Result(measure="catalog", what=what, ours=least("recover", "s", taken_s), target=less_than(RECOVERY_S)),
        Result(measure="catalog", what=what, ours=most("peak", "MiB", peaks_mib)),
    ]
