"""The metadata: an upgrade from backy2, a year of daily versions, and the cost of checking the schema."""

import os
import shutil
import sys

from benchmarks.figures import MIB, Result, alternate, least, less_than, most
from benchmarks.images import settle
from benchmarks.measures.registry import REGISTRY, Bench

UPGRADE_S = 60.0
UPGRADE_MIB = 300
ROWS = 1_000_000
YEAR_BLOCKS = 262_144   # 1 TiB in blocks of 4 MiB
YEAR_DAYS = 365
YEAR_CHANGED = 0.01     # of the blocks, at random, each day
YEAR_MIB = 1024
DAY_S = 3.0
CHECK_MS = 5.0
CHECKS = 20
CONFIG = """\
[DEFAULTS]
block_size: 4194304
hash_function: sha512
encryption_version: 0
[MetaBackend]
type: backy2.meta_backends.sql
engine: sqlite:///backy.sqlite
[DataBackend]
type: backy2.data_backends.file
path: data
simultaneous_writes: 1
"""


@REGISTRY.measure("upgrade", "upgrade of a backy2 database with a million rows of blocks")
def upgrade(bench: Bench) -> list[Result]:
    return [
        # The worst case is a separate blob for each block of each version. Daily backups have 2 %.
        result
        for what, changed in (("all blocks differ", 1.0), ("2 % of the blocks differ", 0.02))
        for result in _upgrade(bench, what, changed)
    ]


def _upgrade(bench: Bench, what: str, changed: float) -> list[Result]:
    directory = bench.workspace.fresh("upgrade")
    original = os.path.join(directory, "original.sqlite")
    _task(bench, "make-backy2", original, ROWS, 10, changed)
    peaks_mib: list[float] = []

    def ours() -> float:
        place = bench.workspace.fresh("upgrade-run")
        os.mkdir(os.path.join(place, "data"))
        with open(os.path.join(place, "backy.cfg"), "w", encoding="utf-8") as file:
            file.write(CONFIG)
        shutil.copy(original, os.path.join(place, "backy.sqlite"))
        settle(os.path.join(place, "backy.sqlite"))
        run = bench.program.run("-c", os.path.join(place, "backy.cfg"), "-q", "upgrade")
        peaks_mib.append(run.peak_rss_bytes / MIB)
        return run.wall_s

    [ours_s] = alternate(bench.repeat, ours)
    what = f"{ROWS:,} rows, {what}"
    return [
        Result(measure="upgrade", what=what, ours=least("upgrade", "s", ours_s), target=less_than(UPGRADE_S)),
        Result(measure="upgrade", what=what, ours=most("peak", "MiB", peaks_mib), target=less_than(UPGRADE_MIB)),
    ]


@REGISTRY.measure("year", "metadata of 365 daily versions of a 1 TiB image, and of one more day")
def year(bench: Bench) -> list[Result]:
    directory = bench.workspace.fresh("year")
    bench.program.init(directory)
    path = os.path.join(directory, "metadata.db")
    _task(bench, "make-days", path, YEAR_BLOCKS, YEAR_DAYS, YEAR_CHANGED)
    size_mib = os.path.getsize(path) / MIB
    day_s, looked_up_s = alternate(
        bench.repeat,
        lambda: _task(bench, "add-day-with-hints", path, YEAR_CHANGED),
        lambda: _task(bench, "add-day", path, YEAR_CHANGED),
    )
    what = f"{YEAR_DAYS} versions of {YEAR_BLOCKS:,} blocks"
    return [
        Result(measure="year", what=what, ours=least("database", "MiB", [size_mib]), target=less_than(YEAR_MIB)),
        Result(measure="year", what="one more day", ours=least("metadata", "s", day_s), target=less_than(DAY_S)),
        # For information: 262,144 look-ups, while a backup reads and hashes a TiB.
        Result(measure="year", what="one more day, no hints", ours=least("metadata", "s", looked_up_s)),
    ]


@REGISTRY.measure("schema-check", "what a command spends on finding the schema up to date")
def schema_check(bench: Bench) -> list[Result]:
    directory = bench.workspace.fresh("repository")
    bench.program.init(directory)
    path = os.path.join(directory, "metadata.db")
    [taken_s] = alternate(CHECKS, lambda: _task(bench, "check", path))
    taken_ms = [seconds * 1000 for seconds in taken_s]
    ours = least("check", "ms", taken_ms)
    return [Result(measure="schema-check", what="one query", ours=ours, target=less_than(CHECK_MS))]


def _task(bench: Bench, task: str, path: str, *numbers: float) -> float:
    """Run a task of metadata_tasks in a separate process; return the number that it prints, if any."""
    run = bench.runner.run([sys.executable, "-m", "benchmarks.metadata_tasks", task, path, *map(str, numbers)])
    return float(run.stdout or 0)
