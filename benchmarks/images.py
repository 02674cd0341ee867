"""The images that are backed up. Each is made once, when the first measure asks for it.

An image under its final name is complete: it is written under another name and renamed.
"""

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import staging
from benchmarks.runner import BenchmarkError, Runner
from benchmarks.workspace import Workspace

RECIPE = 1                 # raise it with every change below: kept images of another recipe are not used
STANDARD_MIB = 2048        # the size for which the targets are stated
CHUNK_BYTES = 4 << 20
SMALL_BLOCK_BYTES = 4096
SMALL_BLOCKS = 100_000
FILLED = 0.70
SPARSE_FACTOR = 10         # 20 GiB
SMALL_FILES = 2000
SMALL_FILES_DIRECTORY = "small-files"
SMALL_FILE_BYTES = 16 << 10  # at most
HUGE_BYTES = 10 << 40
HUGE_SCATTERED = 1024      # blocks of data
FILE_SYSTEM_UUID = "6e0f2d6c-3b5a-4a58-9d58-0b2f1c7d9e41"
ZEROS = bytes(CHUNK_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A finished image file."""

    name: str              # also the name of its versions in a repository
    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Makes images, or finds those of an earlier run."""

    workspace: Workspace
    runner: Runner
    size_mib: int

    @property
    def size_bytes(self) -> int:
        return self.size_mib << 20

    def ext4(self) -> Image:
        """Return a file system filled to 70 % with the machine's own files."""
        return self._image("ext4", self._write_ext4)

    def random(self) -> Image:
        """Return random data, half as large: nothing can be compressed or deduplicated."""
        return self._image("random", self._write_random)

    def small_blocks(self) -> Image:
        """Return 100,000 distinct blocks of 4 KiB, none of them zeros, half of them compressible."""
        return self._image("small-blocks", self._write_small_blocks)

    def sparse(self) -> Image:
        """Return a sparse file of ten times the size with the data of the ext4 image scattered over it."""
        self.ext4()
        return self._image("sparse20", self._write_sparse)

    def files(self) -> Image:
        """Return a file system a quarter as large, with a directory of 2,000 small files among others."""
        return self._image("files", self._write_files)

    def huge(self) -> Image:
        """Return a sparse file of 10 TiB with some blocks of random data at its beginning and scattered over it."""
        return self._image("huge", self._write_huge)

    def tiny(self) -> Image:
        """Return one block: its backup has only the costs that every backup has before and after its blocks."""
        return self._image("tiny", self._write_tiny)

    def _image(self, name: str, write: Callable[[str], None]) -> Image:
        directory = os.path.join(self.workspace.images, f"recipe{RECIPE}-{self.size_mib}")
        path = os.path.join(directory, f"{name}.img")
        if not os.path.exists(path):
            os.makedirs(directory, 0o700, exist_ok=True)
            part = path + ".part"
            try:
                write(part)
                os.rename(part, path)
            finally:
                if os.path.exists(part):
                    os.unlink(part)
        return Image(name=name, path=path, size_bytes=os.path.getsize(path))

    def _write_ext4(self, path: str) -> None:
        directory = self.workspace.fresh("staging")
        inodes = staging.fill(directory, int(self.size_bytes * FILLED))
        self._make_file_system(path, self.size_bytes, directory, inodes)

    def _write_files(self, path: str) -> None:
        size_bytes = self.size_bytes // 4
        directory = self.workspace.fresh("staging")
        inodes = staging.fill(directory, int(size_bytes * FILLED))
        os.mkdir(os.path.join(directory, SMALL_FILES_DIRECTORY))
        source = random.Random(6)
        for number in range(SMALL_FILES):
            with open(os.path.join(directory, SMALL_FILES_DIRECTORY, f"{number:04}"), "wb") as file:
                file.write(source.randbytes(source.randrange(1, SMALL_FILE_BYTES)))
        self._make_file_system(path, size_bytes, directory, inodes + SMALL_FILES)

    def _make_file_system(self, path: str, size_bytes: int, directory: str, inodes: int) -> None:
        """Write an ext4 file system with the contents of a directory, and remove that directory."""
        mkfs = shutil.which("mkfs.ext4", path=os.pathsep.join([*os.get_exec_path(), "/usr/sbin", "/sbin"]))
        if mkfs is None:
            raise BenchmarkError("mkfs.ext4 is missing; install e2fsprogs")
        # A block device has no holes, so the image gets none either, and mkfs must not punch any: a reader
        # that asks where the holes are must not have an advantage over one that reads.
        with open(path, "wb") as file:
            file.writelines(ZEROS for _ in range(size_bytes // CHUNK_BYTES))
        try:
            self.runner.run([
                mkfs, "-q", "-F", "-m", "0", "-U", FILE_SYSTEM_UUID,
                "-E", f"nodiscard,hash_seed={FILE_SYSTEM_UUID}",
                "-N", str(max(inodes + 1024, size_bytes >> 14)), "-d", directory, path,
            ])  # fmt: skip
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _write_random(self, path: str) -> None:
        source = random.Random(1)
        with open(path, "wb") as file:
            chunks = self.size_bytes // 2 // CHUNK_BYTES
            file.writelines(source.randbytes(CHUNK_BYTES) for _ in range(chunks))

    def _write_small_blocks(self, path: str) -> None:
        source = random.Random(2)
        count = max(2, SMALL_BLOCKS * self.size_mib // STANDARD_MIB)
        with open(path, "wb") as file:
            for number in range(count):
                if number % 2:
                    file.write(source.randbytes(SMALL_BLOCK_BYTES))
                else:
                    line = b"block %08d of an image, which compresses well\n" % number
                    file.write((line * (SMALL_BLOCK_BYTES // len(line) + 1))[:SMALL_BLOCK_BYTES])

    def _write_sparse(self, path: str) -> None:
        size_bytes = self.size_bytes * SPARSE_FACTOR
        slots = range(0, size_bytes, CHUNK_BYTES)
        places = iter(random.Random(3).sample(slots, self.size_bytes // CHUNK_BYTES))
        with open(self.ext4().path, "rb") as source, open(path, "wb") as file:
            file.truncate(size_bytes)
            while chunk := source.read(CHUNK_BYTES):
                if chunk != ZEROS:
                    file.seek(next(places))
                    file.write(chunk)

    def _write_huge(self, path: str) -> None:
        source = random.Random(5)
        with open(path, "wb") as file:
            file.truncate(HUGE_BYTES)
            for place in (0, *source.sample(range(0, HUGE_BYTES, CHUNK_BYTES), HUGE_SCATTERED)):
                file.seek(place)
                file.write(source.randbytes(CHUNK_BYTES))

    def _write_tiny(self, path: str) -> None:
        with open(path, "wb") as file:
            file.write(random.Random(4).randbytes(SMALL_BLOCK_BYTES))


def settle(*paths: str) -> None:
    """Give both sides of a comparison the same start: files in the page cache and nothing left to write back.

    Reuses one buffer, because no child can be measured below the memory of this process.
    """
    buffer = bytearray(CHUNK_BYTES)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    os.sync()
