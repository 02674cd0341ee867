"""The measured program. Only its command line is used."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.images import Image
from benchmarks.runner import BenchmarkError, Run, Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The `backyfs` installed next to the interpreter that runs the benchmark."""

    runner: Runner

    @property
    def path(self) -> str:
        return os.path.join(os.path.dirname(sys.executable), "backyfs")

    def require(self) -> None:
        """Refuse to begin without the program."""
        if not os.access(self.path, os.X_OK):
            raise BenchmarkError(f"{self.path} is missing; install the checkout: python -m pip install -e .")

    def run(self, *arguments: str) -> Run:
        return self.runner.run([self.path, *arguments])

    def import_times(self, *arguments: str) -> str:
        """Run the program; return the interpreter's report about every imported module."""
        return self.runner.run([sys.executable, "-X", "importtime", self.path, *arguments]).stderr

    def init(self, directory: str, *, block_size: int | None = None) -> "Repository":
        """Make an encrypted repository in an empty directory."""
        config = os.path.join(directory, "backyfs.cfg")
        place = ["--data", os.path.join(directory, "data"), "--db", os.path.join(directory, "metadata.db")]
        size = [] if block_size is None else ["--block-size", str(block_size)]
        self.run("-c", config, "init", *place, *size)
        return Repository(program=self, config=config)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository that was made for one measure."""

    program: Program
    config: str

    def set_encryption_version(self, number: int) -> None:
        """Set the encryption version of new blobs."""
        with open(self.config, encoding="utf-8") as file:
            text = file.read()
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(re.sub(r"(?m)^encryption_version: .*", f"encryption_version: {number}", text))

    def backup(self, image: Image, *options: str) -> Run:
        return self.program.run("-c", self.config, "-q", "backup", *options, image.path, image.name)

    def restore(self, image: Image, target: str, *options: str) -> Run:
        return self.program.run("-c", self.config, "-q", "restore", *options, f"{image.name}@latest", target)

    def ls(self) -> Run:
        return self.program.run("-c", self.config, "ls")

    def data(self, mountpoint: str, image: Image) -> str:
        """Return the file that shows the newest version of an image, without symbolic links."""
        return os.path.join(os.path.realpath(os.path.join(mountpoint, "by_name", image.name, "latest")), "data")

    @contextlib.contextmanager
    def mounted(self, mountpoint: str, *options: str) -> Iterator[str]:
        """Mount the repository on a directory, in the background, and unmount it at the end."""
        os.makedirs(mountpoint, exist_ok=True)
        try:
            self.program.run("-c", self.config, "-q", "mount", *options, mountpoint)
            yield mountpoint
        finally:
            if os.path.ismount(mountpoint):  # even if a signal came before the command ended
                self.program.run("umount", mountpoint)

    @contextlib.contextmanager
    def attached(self, image: Image, directory: str) -> Iterator[str]:
        """Attach the newest version of an image; yield the loop device of its only file system. Detach at the end."""
        self.program.run("-c", self.config, "-q", "attach", f"{image.name}@latest", directory)
        try:
            with open("/proc/self/mountinfo", encoding="utf-8") as lines:
                mounts = [line.split(" ") for line in lines]
            [device] = [fields[-2] for fields in mounts if fields[4] == os.path.join(directory, "data")]
            yield device
        finally:
            self.program.run("detach", directory)
