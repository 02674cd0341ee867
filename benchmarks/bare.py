"""References in bare Python: the best that the interpreter and the libraries allow if nothing is recorded.

Runs as a separate program (`python -m benchmarks.bare hash|store FILE [DIRECTORY]`), so its memory and threads are not
the benchmark's. Prints the seconds from the first to the last block, without the start of the program.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

BLOCK_BYTES = 4 << 20
THREADS = 2
ZEROS = bytes(BLOCK_BYTES)
TAG_BYTES = 16


def hash_blocks(path: str) -> float:
    """Read and hash every block with two threads, each with one buffer; return the seconds."""
    descriptor = os.open(path, os.O_RDONLY)

    def work(offsets: Iterator[int]) -> None:
        buffer = bytearray(BLOCK_BYTES)
        view = memoryview(buffer)
        for offset in offsets:
            size = os.preadv(descriptor, [buffer], offset)
            blake3(view[:size]).digest()

    return _timed(descriptor, work)


def store_blocks(path: str, directory: str) -> float:
    """Read, hash, compress, encrypt and durably write every block that is not zeros; return the seconds."""
    descriptor = os.open(path, os.O_RDONLY)
    cipher = AESGCM(AESGCM.generate_key(256))

    def work(offsets: Iterator[int]) -> None:
        compressor = zstandard.ZstdCompressor(level=1)
        sealed = memoryview(bytearray(BLOCK_BYTES + (BLOCK_BYTES >> 8) + 1024 + TAG_BYTES))
        for offset in offsets:
            block = os.pread(descriptor, BLOCK_BYTES, offset)
            if block == ZEROS:
                continue
            name = blake3(block).hexdigest()
            packed = compressor.compress(block)
            view = sealed[: len(packed) + TAG_BYTES]
            cipher.encrypt_into(os.urandom(12), packed, None, view)
            _write(os.path.join(directory, name), view)

    return _timed(descriptor, work)


def _write(path: str, data: memoryview) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, data)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _timed(descriptor: int, work: Callable[[Iterator[int]], None]) -> float:
    """Let the threads share the offsets of all blocks; return the seconds.

    The threads can share a range iterator: the interpreter lock makes `next` on it atomic.
    """
    size = os.fstat(descriptor).st_size
    offsets = iter(range(0, size, BLOCK_BYTES))
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work(offsets)
        except BaseException as error:  # noqa: BLE001  a failed thread must not pass for a fast one
            failures.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(THREADS)]
    start_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed_s = time.perf_counter() - start_s
    os.close(descriptor)
    if failures:
        raise failures[0]
    return elapsed_s


if __name__ == "__main__":
    print(hash_blocks(*sys.argv[2:]) if sys.argv[1] == "hash" else store_blocks(*sys.argv[2:]))
