"""Other backup programs, used with an encrypted repository on a local disk.

Caches, keys and configuration are in the work directory; the programs do not see the user's own repositories.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.images import Image
from benchmarks.runner import BenchmarkError, Run, Runner
from benchmarks.workspace import Workspace

MOUNT_PATIENCE_S = 30.0


class Peer(Protocol):
    """A program that can back up and restore one image."""

    @property
    def name(self) -> str: ...

    def init(self) -> None:
        """Replace the last repository with a new encrypted one."""
        ...

    def backup(self, image: Image) -> Run:
        """Back up the image; all of it is read, as it must be for a block device."""
        ...

    def restore(self, image: Image, directory: str) -> Run:
        """Restore the newest backup below the directory."""
        ...


class MountingPeer(Peer, Protocol):
    """A program that can also mount its backups."""

    def can_mount(self) -> bool:
        """Return whether everything that a mount needs is installed."""
        ...

    def mounted(self, mountpoint: str) -> contextlib.AbstractContextManager[str]:
        """Mount all backups and yield the image of the only one. Unmount at the end."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Borg:
    """BorgBackup 1.x. Without its cache of files, which would skip an image by its time stamp."""

    workspace: Workspace
    runner: Runner
    passphrase: str = field(default_factory=lambda: secrets.token_hex(16))
    name: str = "borg"

    @property
    def _repository(self) -> str:
        return os.path.join(self.workspace.runs, "borg", "repository")

    def _run(self, *arguments: str, cwd: str | None = None) -> Run:
        environment = {
            "BORG_BASE_DIR": self.workspace.home,
            "BORG_PASSPHRASE": self.passphrase,
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        return self.runner.run(["borg", *arguments], cwd=cwd, environment=environment)

    def init(self) -> None:
        self.workspace.fresh("borg")
        self._run("init", "--encryption", "repokey-blake2", self._repository)

    def backup(self, image: Image) -> Run:
        directory, name = os.path.split(image.path)
        archive = f"{self._repository}::{secrets.token_hex(8)}"
        options = ["--compression", "zstd,1", "--files-cache", "disabled"]
        return self._run("create", *options, archive, name, cwd=directory)

    def restore(self, image: Image, directory: str) -> Run:
        names = self._run("list", "--last", "1", "--short", self._repository).stdout.split()
        return self._run(
            "extract", f"{self._repository}::{names[-1]}", os.path.basename(image.path), cwd=directory
        )

    def can_mount(self) -> bool:
        return "borg mount not available" not in self.runner.run(["sh", "-c", "borg mount / / 2>&1; true"]).stdout

    @contextlib.contextmanager
    def mounted(self, mountpoint: str) -> Iterator[str]:
        self._run("mount", self._repository, mountpoint)  # it continues in the background
        try:
            yield _only_file(mountpoint)
        finally:
            self.runner.run(["umount", mountpoint])


@dataclass(frozen=True, slots=True, kw_only=True)
class Restic:
    """restic 0.14 or newer, with its fastest compression; `--force` also reads files with an old time stamp."""

    workspace: Workspace
    runner: Runner
    passphrase: str = field(default_factory=lambda: secrets.token_hex(16))
    name: str = "restic"

    @property
    def _environment(self) -> Mapping[str, str]:
        return {
            "RESTIC_PASSWORD": self.passphrase,
            "RESTIC_REPOSITORY": os.path.join(self.workspace.runs, "restic", "repository"),
            "RESTIC_CACHE_DIR": os.path.join(self.workspace.runs, "restic", "cache"),
        }

    def _run(self, *arguments: str) -> Run:
        return self.runner.run(["restic", "-q", *arguments], environment=self._environment)

    def _compression(self) -> str:
        """Return the fastest compression that this release supports: `fastest` is newer than `auto`."""
        return "fastest" if "fastest" in self.runner.run(["restic", "backup", "--help"]).stdout else "auto"

    def init(self) -> None:
        self.workspace.fresh("restic")
        self._run("init", "--repository-version", "2")

    def backup(self, image: Image) -> Run:
        return self._run("--compression", self._compression(), "backup", "--force", image.path)

    def restore(self, image: Image, directory: str) -> Run:  # noqa: ARG002  it is all that a snapshot holds
        return self._run("restore", "latest", "--target", directory)

    def can_mount(self) -> bool:
        return True

    @contextlib.contextmanager
    def mounted(self, mountpoint: str) -> Iterator[str]:
        environment = {**self.runner.environment, **self._environment}
        # It stays in the foreground and prints messages.
        program = subprocess.Popen(
            ["restic", "-q", "mount", mountpoint],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            latest = os.path.join(mountpoint, "snapshots", "latest")
            deadline = time.monotonic() + MOUNT_PATIENCE_S
            while not os.path.exists(latest):
                if program.poll() is not None or time.monotonic() > deadline:
                    raise BenchmarkError(f"restic did not mount its repository on {mountpoint}")
                time.sleep(0.05)
            yield _only_file(latest)
        finally:
            program.send_signal(signal.SIGINT)  # it unmounts
            try:
                program.wait(MOUNT_PATIENCE_S)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()


def _only_file(directory: str) -> str:
    [found] = [os.path.join(folder, name) for folder, _, names in os.walk(directory) for name in names]
    return found


def installed(workspace: Workspace, runner: Runner) -> list[MountingPeer]:
    """Return the peers that are installed."""
    peers: list[MountingPeer] = [
        Restic(workspace=workspace, runner=runner),
        Borg(workspace=workspace, runner=runner),
    ]
    return [peer for peer in peers if shutil.which(peer.name)]
