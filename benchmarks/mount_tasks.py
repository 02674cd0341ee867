"""Readers of a mount, and the rate at which its images could be read without one.

Run as `python -m benchmarks.mount_tasks TASK ...`. Separate programs, so that their memory and their imports are
not those of the benchmark. Each prints one number.
"""

import mmap
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from backyfs.blocks import load_block
from backyfs.config import load_config
from backyfs.geometry import block_count
from backyfs.images.image import Image
from backyfs.metadata.records.versions import find_version
from backyfs.model import Blob, BlockIndex
from backyfs.repository import open_repository

THREADS = 2
CHUNK_BYTES = 1 << 20
SMALL_BYTES = 4096
BLOCK_BYTES = 4 << 20
RANDOM_S = 5.0
STAT_EVERY_S = 0.002


def open_blobs(config_file: str, name: str) -> float:
    """Return the seconds in which two threads open all blobs of an image, in order, and do nothing with them."""
    config, _ = load_config(config_file, {})
    with open_repository(config) as repository:
        with repository.database.read() as connection:
            version = find_version(connection, f"{name}@latest")
        image = Image(repository, version)
        indexes = range(block_count(version.size_bytes, repository.block_size))
        blobs = [blob for blob in (image.blob(BlockIndex(index)) for index in indexes) if blob is not None]

        def length(blob: Blob) -> int:
            return len(load_block(repository.blocks, blob))

        start_s = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as pool:
            total = sum(pool.map(length, blobs))
        assert total == sum(blob.size for blob in blobs)
        return time.perf_counter() - start_s


def sequential(path: str, readers: str) -> float:
    """Return the seconds in which some processes read a file together, each its part from beginning to end."""
    part = os.path.getsize(path) // int(readers)
    start_s = time.perf_counter()
    _in_processes([lambda start=start: _read_range(path, start * part, part) for start in range(int(readers))])
    return time.perf_counter() - start_s


def random_reads(path: str, size: str, jobs: str) -> float:
    """Return how many reads of 4 KiB per second some processes get from the first `size` bytes of a file.

    The pages do not stay in the kernel (O_DIRECT): each read is answered by the mount.
    """
    places = int(size) // SMALL_BYTES
    read_end, write_end = os.pipe()

    def job(seed: int) -> None:
        buffer = mmap.mmap(-1, SMALL_BYTES)  # O_DIRECT needs an aligned buffer
        source = random.Random(seed)
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        count = 0
        end_s = time.perf_counter() + RANDOM_S
        while time.perf_counter() < end_s:
            os.preadv(file, [buffer], source.randrange(places) * SMALL_BYTES)
            count += 1
        os.write(write_end, count.to_bytes(8, "little"))

    _in_processes([lambda seed=seed: job(seed) for seed in range(int(jobs))])
    counts = os.read(read_end, 8 * int(jobs))
    return sum(int.from_bytes(counts[i : i + 8], "little") for i in range(0, len(counts), 8)) / RANDOM_S


def cold_latency(path: str) -> float:
    """Return the median, in ms, of how long a read of 4 KiB takes that is the first one of its block."""
    return statistics.median(_cold_reads(path))


def cold_bytes(path: str) -> float:
    """Return how many KiB the mount reads for each such read: objects, kernel requests and database."""
    mountpoint = os.path.dirname(os.path.dirname(os.path.dirname(path)))
    pid = int(os.getxattr(mountpoint, "user.backyfs.pid"))
    before = _bytes_read(pid)
    count = len(_cold_reads(path))
    return (_bytes_read(pid) - before) / count / 1024


def _cold_reads(path: str) -> list[float]:
    """Read 4 KiB at a random offset of each block, in random order; return the ms of reads that are not zeros."""
    source = random.Random(1)
    buffer = mmap.mmap(-1, SMALL_BYTES)
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    blocks = list(range(os.path.getsize(path) // BLOCK_BYTES))
    source.shuffle(blocks)
    taken_ms = []
    for block in blocks:
        offset = block * BLOCK_BYTES + source.randrange(BLOCK_BYTES // SMALL_BYTES) * SMALL_BYTES
        start_s = time.perf_counter()
        os.preadv(file, [buffer], offset)
        read_ms = (time.perf_counter() - start_s) * 1000
        if any(buffer[:]):
            taken_ms.append(read_ms)
    os.close(file)
    return taken_ms


def _bytes_read(pid: int) -> int:
    with open(f"/proc/{pid}/io", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("rchar:"))


def stat_latency(path: str, directory: str, what: str) -> float:
    """Return the 99th percentile, in ms, of the time for `stat` or `ls` of a directory while a file is read.

    The names do not exist: the kernel remembers existing names, and would not ask the mount.
    """
    reader = os.fork()
    if reader == 0:
        _read_range(path, 0, os.path.getsize(path))
        os._exit(0)
    taken_ms: list[float] = []
    while os.waitpid(reader, os.WNOHANG) == (0, 0):
        start_s = time.perf_counter()
        if what == "ls":
            os.listdir(directory)
        else:
            os.path.exists(os.path.join(directory, f"absent-{len(taken_ms)}"))
        taken_ms.append((time.perf_counter() - start_s) * 1000)
        time.sleep(STAT_EVERY_S)
    return sorted(taken_ms)[int(len(taken_ms) * 0.99)]


def _read_range(path: str, start: int, size: int) -> None:
    buffer = bytearray(CHUNK_BYTES)
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while size > 0:
            size -= file.readinto(buffer) or size


def _in_processes(works: Sequence[Callable[[], None]]) -> None:
    """Do each work in a separate process, all at the same time."""
    children = []
    for work in works:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work()
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    if any([os.waitpid(child, 0)[1] for child in children]):  # noqa: C419 - all of them must be waited for
        raise SystemExit("a reader failed")


TASKS: dict[str, Callable[..., float]] = {
    "open-blobs": open_blobs,
    "sequential": sequential,
    "random": random_reads,
    "stat-latency": stat_latency,
    "cold-latency": cold_latency,
    "cold-bytes": cold_bytes,
}

if __name__ == "__main__":
    print(TASKS[sys.argv[1]](*sys.argv[2:]))
