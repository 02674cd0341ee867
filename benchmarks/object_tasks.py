"""References for object stores: bare calls of obstore with a number of threads, and cold reads of a mount.

Run as `python -m benchmarks.object_tasks TASK ...`, so that memory, threads and CPU time are not those of the
benchmark. Prints the seconds, and for bare calls also the seconds of CPU time.
"""

import json
import os
import random
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import obstore
from obstore.store import S3Store

SMALL_BYTES = 4096


def put_objects(store: S3Store, sizes: list[int], threads: int) -> None:
    """Put objects with random bytes."""
    content = os.urandom(max(sizes))
    _all_of(
        lambda number: obstore.put(
            store, f"bare/{number}", memoryview(content)[: sizes[number]], use_multipart=False
        ),
        range(len(sizes)),
        threads,
    )


def get_objects(store: S3Store, keys: list[str], threads: int) -> None:
    """Get objects and drop them."""
    _all_of(lambda key: obstore.get(store, key).bytes(), keys, threads)


def _all_of(task: Any, items: Any, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(task, items):
            pass


def cold_reads(path: str, block_bytes: int) -> list[float]:
    """Read 4 KiB at a random place of every block, in random order; return the seconds of each read."""
    random.seed(path)
    blocks = list(range(os.path.getsize(path) // block_bytes))
    random.shuffle(blocks)
    file = os.open(path, os.O_RDONLY)
    taken = []
    for block in blocks:
        place = block * block_bytes + random.randrange(block_bytes // SMALL_BYTES) * SMALL_BYTES
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        start_s = time.perf_counter()
        os.pread(file, SMALL_BYTES, place)
        taken.append(time.perf_counter() - start_s)
    return taken


def main(task: str, *arguments: str) -> None:
    if task == "cold":
        taken = cold_reads(arguments[0], int(arguments[1]))
        print(json.dumps({"reads": len(taken), "mean_s": sum(taken) / len(taken)}))
        return
    about = json.loads(arguments[0])
    store = S3Store(
        about["bucket"],
        prefix=about["prefix"],
        endpoint=about["endpoint"],
        access_key_id=about["access_key"],
        secret_access_key=about["secret_key"],
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True, "timeout": timedelta(minutes=5)},
    )
    threads = int(arguments[1])
    start_s = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF)
    if task == "put":
        put_objects(store, about["sizes"], threads)
    else:
        get_objects(store, about["keys"], threads)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"wall_s": time.perf_counter() - start_s, "cpu_s": cpu_s}))


if __name__ == "__main__":
    main(*sys.argv[1:])
