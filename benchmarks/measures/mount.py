"""Reading a mount: in order, at random, with several readers, through a loop device; its latency and memory.

Before the clock starts the stored blobs are in the page cache, for both sides; nothing of the image is in the
kernel or in the memory of the mount, unless the measure says so.

Work that fills the page cache is done twice, with the page cache dropped in between, and the second time counts: a
virtual machine returns free memory to its host, and gets it back at a tenth of the speed of a copy.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import partial

from benchmarks.figures import MIB, Result, alternate, at_least, at_most, least, less_than, most, rates
from benchmarks.images import Image, settle
from benchmarks.measures.registry import REGISTRY, Bench
from benchmarks.program import Repository

CACHE_MIB = 256           # the default of `mount`
LISTED_VERSIONS = 10_000
ATTACH_STARTS = 2.0       # attach starts Python once; twice would take 2.5 times as long as ls
RANDOM_BYTES = 128 << 20  # less than the cache


@REGISTRY.measure("mount-sequential", "dd of a mounted image, against restore and against opening the same blobs")
def sequential(bench: Bench) -> list[Result]:
    image, repository = _backed_up(bench)
    restored = os.path.join(bench.workspace.fresh("restored"), "image")

    def restore() -> float:
        settle_all(repository)
        return second_s(lambda: repository.restore(image, restored).wall_s, lambda: os.unlink(restored))

    mounted_s, restored_s, opened_s = alternate(
        bench.repeat,
        partial(dd_s, bench, repository, image),
        restore,
        lambda: task(bench, "open-blobs", repository.config, image.name),
    )
    ours = rates("dd", image.size_bytes, mounted_s)
    return [
        Result(
            measure="mount-sequential", what=image.name, ours=ours,
            reference=rates("restore", image.size_bytes, restored_s), target=at_least(0.8),
        ),
        Result(
            measure="mount-sequential", what=image.name, ours=ours,
            reference=rates("two threads open", image.size_bytes, opened_s), target=at_least(0.45),
        ),
    ]  # fmt: skip


@REGISTRY.measure("mount-loop", "dd of a loop device on a mounted image, as attach makes it, against dd of the image")
def loop(bench: Bench) -> list[Result]:
    image, repository = _backed_up(bench)

    def loop_s() -> float:
        settle_all(repository)
        with repository.attached(image, bench.workspace.fresh("attached")) as device:
            return second_s(
                lambda: _dd(bench, device), lambda: bench.runner.run(["blockdev", "--flushbufs", device])
            )

    loop_times, data_times = alternate(bench.repeat, loop_s, partial(dd_s, bench, repository, image))
    return [
        Result(
            measure="mount-loop", what=image.name, ours=rates("loop device", image.size_bytes, loop_times),
            reference=rates("data", image.size_bytes, data_times), target=at_least(0.8),
        )
    ]  # fmt: skip


@REGISTRY.measure("attach", "attach of a file system, against the start of one process: ls")
def attach(bench: Bench) -> list[Result]:
    image = bench.images.files()
    repository = bench.program.init(bench.workspace.fresh("repository"))
    repository.backup(image)

    def attach_s() -> float:
        settle_all(repository)
        start_s = time.perf_counter()
        with repository.attached(image, bench.workspace.fresh("attached")):
            return time.perf_counter() - start_s

    attach_times, ls_times = alternate(bench.repeat, attach_s, lambda: repository.ls().wall_s)
    return [
        Result(
            measure="attach", what=image.name, ours=least("attach", "s", attach_times),
            reference=least("ls", "s", ls_times), target=at_most(ATTACH_STARTS),
        )
    ]  # fmt: skip


@REGISTRY.measure("mount-readers", "four sequential readers at once, against one")
def readers(bench: Bench) -> list[Result]:
    image, repository = _backed_up(bench)

    def read_s(count: int) -> float:
        def read(data: str) -> float:
            return cold_s(bench, data, lambda: task(bench, "sequential", data, count))

        return on_mount(bench, repository, image, read)

    one_s, four_s = alternate(bench.repeat, lambda: read_s(1), lambda: read_s(4))
    return [
        Result(
            measure="mount-readers", what=f"{image.name}, a quarter each",
            ours=rates("four", image.size_bytes, four_s), reference=rates("one", image.size_bytes, one_s),
            target=at_least(1.0),
        )
    ]  # fmt: skip


@REGISTRY.measure("mount-random", "random reads of 4 KiB by four jobs, from the memory of the mount")
def random_reads(bench: Bench) -> list[Result]:
    image, repository = _backed_up(bench)

    def per_second(data: str) -> float:
        count = RANDOM_BYTES // MIB
        bench.runner.run(["dd", f"if={data}", "of=/dev/null", "bs=1M", f"count={count}", "iflag=direct"])
        return task(bench, "random", data, RANDOM_BYTES, 4)

    [per_s] = alternate(bench.repeat, lambda: on_mount(bench, repository, image, per_second))
    ours = most("4 jobs", "IOPS", per_s)
    return [Result(measure="mount-random", what="4 KiB, O_DIRECT", ours=ours, target=at_least(25_000))]


@REGISTRY.measure("mount-again", "reading a mounted image for the second time, against a plain file")
def again(bench: Bench) -> list[Result]:
    image, repository = _backed_up(bench)
    settle(image.path)

    def second_s(data: str) -> float:
        _dd(bench, data)
        return _dd(bench, data)

    ours_s, file_s = alternate(
        bench.repeat,
        lambda: on_mount(bench, repository, image, second_s),
        lambda: min(_dd(bench, image.path) for _ in range(2)),
    )
    return [
        Result(
            measure="mount-again", what=image.name, ours=rates("mount", image.size_bytes, ours_s),
            reference=rates("plain file", image.size_bytes, file_s), target=at_least(1.0),
        )
    ]  # fmt: skip


@REGISTRY.measure("mount-memory", "memory of a mount that has read an image, and one of 10 TiB")
def memory(bench: Bench) -> list[Result]:
    image, repository = _backed_up(bench)
    huge = bench.images.huge()
    repository.backup(huge)

    def resident_mib(of: Image, data: str) -> float:
        if of is not huge:
            task(bench, "sequential", data, 4)
        task(bench, "random", data, of.size_bytes, 4)
        return _resident_mib(data)

    sides = alternate(
        1,
        lambda: on_mount(bench, repository, image, partial(resident_mib, image)),
        lambda: on_mount(bench, repository, huge, partial(resident_mib, huge)),
    )
    return [
        Result(
            measure="mount-memory", what=f"{of.name}, cache of {CACHE_MIB} MiB", ours=most("resident", "MiB", values),
            target=less_than(CACHE_MIB + 150),
        )
        for of, values in zip((image, huge), sides, strict=True)
    ]  # fmt: skip


@REGISTRY.measure("mount-first-byte", "from the command to the first byte of an image of 10 TiB")
def first_byte(bench: Bench) -> list[Result]:
    repository = bench.program.init(bench.workspace.fresh("repository"))
    huge = bench.images.huge()
    repository.backup(huge)
    mountpoint = bench.workspace.fresh("mount")
    script = (
        '"$0" -c "$1" -q mount "$2" && head -c 1 "$2/by_name/$3/latest/data" > /dev/null'
    )

    def first_s() -> float:
        settle_all(repository)
        try:
            return bench.runner.run(
                ["sh", "-c", script, bench.program.path, repository.config, mountpoint, huge.name]
            ).wall_s
        finally:
            bench.program.run("umount", mountpoint)

    [taken_s] = alternate(bench.repeat, first_s)
    ours = least("mount and read", "s", taken_s)
    return [Result(measure="mount-first-byte", what="2,621,440 blocks, sparse", ours=ours, target=less_than(0.7))]


@REGISTRY.measure("mount-stat", "how long stat and ls take while an image is read")
def stat(bench: Bench) -> list[Result]:
    image, repository = _backed_up(bench)

    def percentile_ms(what: str) -> float:
        def read(data: str) -> float:
            return task(bench, "stat-latency", data, os.path.dirname(data), what)

        return on_mount(bench, repository, image, read)

    kinds = ("stat", "ls")
    sides = alternate(bench.repeat, *(partial(percentile_ms, what) for what in kinds))
    return [
        Result(
            measure="mount-stat", what=what, ours=least("p99", "ms", taken_ms),
            target=less_than(10.0) if what == "stat" else None,
        )
        for what, taken_ms in zip(kinds, sides, strict=True)
    ]  # fmt: skip


@REGISTRY.measure("mount-listing", "how long ls takes on a mount of 10,000 versions")
def listing(bench: Bench) -> list[Result]:
    directory = bench.workspace.fresh("repository")
    repository = bench.program.init(directory)
    database = os.path.join(directory, "metadata.db")
    bench.runner.run([sys.executable, "-m", "benchmarks.metadata_tasks", "versions", database, str(LISTED_VERSIONS)])

    def listing_s(*command: str) -> float:
        with repository.mounted(bench.workspace.fresh("mount")) as mountpoint:
            return bench.runner.run([*command, os.path.join(mountpoint, "by_version_uid")]).wall_s

    commands = (("ls",), ("ls", "-l"))  # for -l it asks three times per entry for attributes that do not exist
    sides = alternate(bench.repeat, *(partial(listing_s, *command) for command in commands))
    return [
        Result(
            measure="mount-listing", what=f"{LISTED_VERSIONS:,} versions", ours=least(" ".join(command), "s", taken_s),
            target=less_than(1.0) if command == ("ls",) else None,
        )
        for command, taken_s in zip(commands, sides, strict=True)
    ]  # fmt: skip


def _backed_up(bench: Bench) -> tuple[Image, Repository]:
    image = bench.images.ext4()
    repository = bench.program.init(bench.workspace.fresh("repository"))
    repository.backup(image)
    return image, repository


def on_mount(bench: Bench, repository: Repository, image: Image, read: Callable[[str], float]) -> float:
    """Return what `read` returns for the file of an image, in a mount that has read nothing yet."""
    settle_all(repository)
    with repository.mounted(bench.workspace.fresh("mount")) as mountpoint:
        return read(repository.data(mountpoint, image))


def dd_s(bench: Bench, repository: Repository, image: Image) -> float:
    """Return the seconds in which dd reads an image from a mount that has nothing of it in memory."""
    return on_mount(bench, repository, image, lambda data: cold_s(bench, data, lambda: _dd(bench, data)))


def cold_s(bench: Bench, path: str, read: Callable[[], float]) -> float:
    """Return the seconds in which a file is read that is not in the page cache."""
    return second_s(read, lambda: bench.runner.run(["dd", f"if={path}", "iflag=nocache", "count=0"]))


def second_s(work: Callable[[], float], undo: Callable[[], object]) -> float:
    """Do some work twice and return its seconds the second time; undo it each time."""
    seconds = 0.0
    for _ in range(2):
        seconds = work()
        undo()
    return seconds


def _dd(bench: Bench, path: str) -> float:
    return bench.runner.run(["dd", f"if={path}", "of=/dev/null", "bs=1M"]).wall_s


def settle_all(repository: Repository) -> None:
    """Give both sides of a comparison the same start."""
    folders = os.walk(os.path.dirname(repository.config))
    settle(*(os.path.join(folder, name) for folder, _, names in folders for name in names))


def _resident_mib(data: str) -> float:
    """Return the resident memory of the process that serves a mount."""
    mountpoint = os.path.dirname(os.path.dirname(os.path.dirname(data)))
    pid = int(os.getxattr(mountpoint, "user.backyfs.pid"))
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) / 1024


def task(bench: Bench, task: str, path: str, *arguments: object) -> float:
    """Run a task of mount_tasks in a separate process; return the number that it prints."""
    run = bench.runner.run([sys.executable, "-m", "benchmarks.mount_tasks", task, path, *map(str, arguments)])
    return float(run.stdout)
