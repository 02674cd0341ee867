"""Repositories in an object store, through a proxy that delays every request.

References are bare calls of obstore through the same proxy, with objects of the same sizes and the best number of
threads. Server, proxy and program share the processors, so only ratios mean anything. The data cannot be compressed:
then as many bytes go over the line as are read or written, for both sides.
"""

import json
import os
import sys
import time
from collections.abc import Iterator

from benchmarks.figures import MIB, Result, Samples, Target, at_least, at_most, least, less_than, most, rates
from benchmarks.images import Image
from benchmarks.measures.memory import LIMIT_MIB
from benchmarks.measures.registry import REGISTRY, Bench
from benchmarks.objectstore import THREADS, object_store
from benchmarks.program import Repository
from tests.support.requestlog import Verb

DELAYS_S = (0.05, 0.15)
BLOCK_BYTES = 4 << 20
KIB = 1 << 10


@REGISTRY.measure("s3-backup", "first backup to an object store, against bare calls with the best number of threads")
def backup(bench: Bench) -> list[Result]:
    image = bench.images.random()
    results = []
    with object_store(bench.runner) as store:
        for delay_s in DELAYS_S:
            ours, bare, single, peaks = [], {threads: [] for threads in THREADS}, [], []
            for number in range(bench.repeat):
                prefix = f"backup-{delay_s}-{number}"
                repository = store.init(bench.program, bench.workspace.fresh("repository"), prefix)
                store.delay(delay_s)
                run = repository.backup(image)
                ours.append(run.wall_s)
                peaks.append(run.peak_rss_bytes / MIB)
                sizes = list(store.blobs(prefix).values())
                for threads, taken in bare.items():
                    bare_prefix = f"bare-{delay_s}-{number}-{threads}"
                    taken.append(store.bare("put", threads, bare_prefix, sizes=sizes)["wall_s"])
                some = sizes[: max(1, len(sizes) // 8)]
                once = store.bare("put", 1, f"one-{delay_s}-{number}", sizes=some)["wall_s"]
                single.append(once * sum(sizes) / sum(some))
            stored = sum(sizes)
            results += _against_bare("s3-backup", "put", delay_s, stored, ours, bare)
            name = f"{delay_s * 1000:.0f} ms"
            results += [
                Result(
                    measure="s3-backup",
                    what=f"{name}, against one request at a time",
                    ours=rates("backup", stored, ours),
                    reference=rates("one thread", stored, single),
                    target=at_least(5),
                ),
                _plain("s3-backup", f"{name}, peak memory", most("backup", "MiB", peaks), less_than(LIMIT_MIB)),
            ]
    return results


@REGISTRY.measure("s3-restore", "restore from an object store, and reading its mount, against bare calls")
def restore(bench: Bench) -> list[Result]:
    image = bench.images.random()
    results = []
    with object_store(bench.runner) as store:
        repository = store.init(bench.program, bench.workspace.fresh("repository"), "restore")
        repository.backup(image)
        blobs = store.blobs("restore")
        stored = sum(blobs.values())
        target = os.path.join(bench.workspace.fresh("restored"), "image")
        for delay_s in DELAYS_S:
            store.delay(delay_s)
            ours, mounted, bare = [], [], {threads: [] for threads in THREADS}
            for _ in range(bench.repeat):
                ours.append(repository.restore(image, target, "--no-sync").wall_s)
                os.unlink(target)
                mounted.append(_mount_s(bench, repository, image))
                for threads, taken in bare.items():
                    taken.append(store.bare("get", threads, "restore", keys=list(blobs))["wall_s"])
            results += _against_bare("s3-restore", "get", delay_s, stored, ours, bare)
            results.append(
                Result(
                    measure="s3-restore",
                    what=f"{delay_s * 1000:.0f} ms, cold mount in order, against restore",
                    ours=rates("dd", image.size_bytes, mounted),
                    reference=rates("restore", image.size_bytes, ours),
                    target=at_least(0.8),
                )
            )
    return results


@REGISTRY.measure("s3-random", "cold random reads of a mount of an object store, in round trips and bytes")
def random_reads(bench: Bench) -> list[Result]:
    image = bench.images.ext4()
    delay_s = DELAYS_S[0]
    trips, first, sizes = [], [], []
    with object_store(bench.runner) as store:
        repository = store.init(bench.program, bench.workspace.fresh("repository"), "random")
        repository.backup(image)
        store.delay(delay_s)
        for _ in range(bench.repeat):
            with repository.mounted(bench.workspace.fresh("mount")) as mountpoint:
                path = repository.data(mountpoint, image)
                started_s = time.perf_counter()
                with open(path, "rb", buffering=0) as file:
                    file.read(1)
                first.append((time.perf_counter() - started_s) / delay_s)
                store.proxy.take_traffic()
                run = bench.runner.run(
                    [sys.executable, "-m", "benchmarks.object_tasks", "cold", path, str(BLOCK_BYTES)]
                )
                traffic = store.proxy.take_traffic()
            found = json.loads(run.stdout)
            trips.append(found["mean_s"] / delay_s)
            sizes.append(traffic.answer_bytes / found["reads"] / KIB)
    cold = "4 KiB of a block that was not read before"
    return [
        _plain("s3-random", cold, least("mean", "round trips", trips), at_most(1.5)),
        _plain("s3-random", cold, least("mean", "KiB", sizes), at_most(300)),
        _plain("s3-random", "first byte of a fresh mount", least("first", "round trips", first), at_most(3)),
    ]


@REGISTRY.measure("s3-requests", "requests for each blob of a backup, a restore and a scrub")
def requests(bench: Bench) -> list[Result]:
    image = bench.images.ext4()
    with object_store(bench.runner) as store:
        repository = store.init(bench.program, bench.workspace.fresh("repository"), "requests")
        store.proxy.take_traffic()
        repository.backup(image)
        backed_up = store.proxy.take_traffic()
        repository.restore(image, os.path.join(bench.workspace.fresh("restored"), "image"), "--no-sync")
        restored = store.proxy.take_traffic()
        bench.program.run("-c", repository.config, "-q", "scrub", "--all")
        scrubbed = store.proxy.take_traffic()
        blobs = len(store.blobs("requests"))
    counted = [
        ("PUTs of a backup for each new blob", backed_up.counts[Verb.PUT] / blobs, at_most(1.05)),
        ("HEADs and LISTs of a backup", backed_up.counts[Verb.HEAD] + backed_up.counts[Verb.LIST], at_most(0)),
        ("GETs of a restore for each blob", restored.counts[Verb.GET] / blobs, at_most(1.05)),
        ("GETs of a scrub for each blob", scrubbed.counts[Verb.GET] / blobs, at_most(1.05)),
    ]
    return [_plain("s3-requests", what, least("count", "", [value]), target) for what, value, target in counted]


@REGISTRY.measure("s3-concurrency", "the adaptive number of requests, against the best fixed one")
def concurrency(bench: Bench) -> list[Result]:
    image = bench.images.ext4()
    results = []
    with object_store(bench.runner) as store:
        for delay_s in DELAYS_S:
            sides: dict[int | None, list[float]] = {None: [], **{threads: [] for threads in THREADS}}
            for number in range(bench.repeat):
                for threads, taken in sides.items():
                    prefix = f"fixed-{delay_s}-{number}-{threads}"
                    options = [] if threads is None else [f"simultaneous_writes: {threads}"]
                    repository = store.init(bench.program, bench.workspace.fresh("repository"), prefix, *options)
                    store.delay(delay_s)
                    taken.append(repository.backup(image).wall_s)
            best = min((threads for threads in sides if threads is not None), key=lambda one: min(sides[one]))
            results.append(
                Result(
                    measure="s3-concurrency",
                    what=f"{delay_s * 1000:.0f} ms",
                    ours=rates("adaptive", image.size_bytes, sides[None]),
                    reference=rates(f"{best} requests", image.size_bytes, sides[best]),
                    target=at_least(0.9),
                )
            )
    return results


@REGISTRY.measure("s3-cpu", "processor time of a backup to an object store beyond that of sealing, against bare calls")
def cpu(bench: Bench) -> list[Result]:
    image = bench.images.ext4()
    with object_store(bench.runner) as store:
        ours, bare = [], []
        for number in range(bench.repeat):
            local = bench.program.init(bench.workspace.fresh("local"))
            _keep_nothing(local)
            sealing = local.backup(image).cpu_s
            prefix = f"cpu-{number}"
            repository = store.init(bench.program, bench.workspace.fresh("repository"), prefix)
            ours.append(repository.backup(image).cpu_s - sealing)
            sizes = list(store.blobs(prefix).values())
            bare.append(store.bare("put", 8, f"cpu-bare-{number}", sizes=sizes)["cpu_s"])
    stored_gib = sum(sizes) / (1 << 30)
    return [
        Result(
            measure="s3-cpu",
            what="put",
            ours=least("backup", "s/GiB", [value / stored_gib for value in ours]),
            reference=least("bare", "s/GiB", [value / stored_gib for value in bare]),
            target=at_most(1.3),
        )
    ]


def _against_bare(
    measure: str, verb: str, delay_s: float, stored: int, ours: list[float], bare: dict[int, list[float]]
) -> Iterator[Result]:
    best = min(bare, key=lambda threads: min(bare[threads]))
    yield Result(
        measure=measure,
        what=f"{delay_s * 1000:.0f} ms, bytes as they are stored",
        ours=rates(measure.removeprefix("s3-"), stored, ours),
        reference=rates(f"{verb}, {best} threads", stored, bare[best]),
        target=at_least(0.8),
    )


def _plain(measure: str, what: str, samples: Samples, target: Target) -> Result:
    return Result(measure=measure, what=what, ours=samples, target=target)


def _mount_s(bench: Bench, repository: Repository, image: Image) -> float:
    """Return the seconds in which dd reads a fresh mount."""
    with repository.mounted(bench.workspace.fresh("mount")) as mountpoint:
        path = repository.data(mountpoint, image)
        return bench.runner.run(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"]).wall_s


def _keep_nothing(repository: Repository) -> None:
    with open(repository.config, encoding="utf-8") as file:
        text = file.read()
    with open(repository.config, "w", encoding="utf-8") as file:
        file.write(text.replace("type: file", "type: null"))
