"""The references that backyfs is measured against: zstd and bare Python. Each returns the seconds of one run."""

import os
import shutil
import sys
from dataclasses import dataclass

from benchmarks.images import Image, settle
from benchmarks.runner import BenchmarkError, Runner
from benchmarks.workspace import Workspace

CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """The references, with the directory that they may write to."""

    workspace: Workspace
    runner: Runner

    def zstd_compress_s(self, image: Image) -> float:
        """Compress with two threads at level 1, and throw the result away."""
        settle(image.path)
        argv = [_zstd(), "-q", "-1", "-T2", "-c", image.path]
        return self.runner.run(argv, discard_stdout=True).wall_s

    def zstd_archive(self, image: Image) -> str:
        """Return the path of the image, compressed at level 1."""
        path = os.path.join(self.workspace.fresh(f"zstd-{image.name}"), f"{image.name}.img.zst")
        self.runner.run([_zstd(), "-q", "-1", "-T2", image.path, "-o", path])
        return path

    def zstd_decompress_s(self, archive: str, target: str) -> float:
        """Decompress to a new file; zstd does not wait until it is on the disk."""
        if os.path.exists(target):
            os.unlink(target)
        settle(archive)
        return self.runner.run([_zstd(), "-q", "-d", "--no-sparse", "-f", archive, "-o", target]).wall_s

    def bare_hash_s(self, image: Image) -> float:
        """Read and hash with two Python threads."""
        settle(image.path)
        return self._bare("hash", image.path)

    def bare_store_s(self, image: Image) -> float:
        """Read, hash, compress, encrypt and write with two Python threads."""
        directory = self.workspace.fresh("bare-store")
        settle(image.path)
        try:
            return self._bare("store", image.path, directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _bare(self, *arguments: str) -> float:
        argv = [sys.executable, "-m", "benchmarks.bare", *arguments]
        return float(self.runner.run(argv, cwd=CHECKOUT).stdout)


def _zstd() -> str:
    path = shutil.which("zstd")
    if path is None:
        raise BenchmarkError("zstd is missing; install the package zstd")
    return path
