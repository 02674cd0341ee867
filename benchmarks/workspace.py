"""The directory that contains everything: images, which can be kept, and runs, which never are kept.

The benchmark removes only its own files: it accepts a directory only if it is new, empty, or marked by an earlier
run. A directory belongs to one run at a time.
"""

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.runner import BenchmarkError

MARK = ".backyfs-benchmarks"
DIRECTORY_MODE = 0o700


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """A work directory that is ours."""

    path: str

    @property
    def images(self) -> str:
        return os.path.join(self.path, "images")

    @property
    def runs(self) -> str:
        return os.path.join(self.path, "runs")

    @property
    def home(self) -> str:
        """The home of the measured programs: the user's configuration has no effect."""
        return os.path.join(self.runs, "home")

    def fresh(self, name: str) -> str:
        """Return a new, empty directory for a run; leftovers with this name are removed."""
        path = os.path.join(self.runs, name)
        shutil.rmtree(path, ignore_errors=True)
        os.makedirs(path, DIRECTORY_MODE)
        return path

    def require_space(self, size_bytes: int) -> None:
        """Refuse to begin work that would fill the file system."""
        free = shutil.disk_usage(self.path).free
        if free < size_bytes:
            raise BenchmarkError(
                f"{self.path} has {free >> 20} MiB free, {size_bytes >> 20} MiB are needed; "
                "choose another --work-dir or a smaller --size-mib"
            )


def default_path() -> str:
    """Return the work directory of this user."""
    parent = os.environ.get("TMPDIR") or "/var/tmp"  # noqa: S108  `open_workspace` checks owner and mark
    return os.path.join(parent, f"backyfs-bench-{os.getuid()}")


@contextlib.contextmanager
def open_workspace(path: str, *, keep: bool) -> Iterator[Workspace]:
    """Take the directory for this run; afterwards remove it, or with `keep` everything except the images.

    Raises:
        BenchmarkError: it is not ours to use, or another run uses it.
    """
    path = os.path.abspath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, DIRECTORY_MODE)
    _check(path)
    mark = os.open(os.path.join(path, MARK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _lock(mark, path)
        workspace = Workspace(path=path)
        try:
            shutil.rmtree(workspace.runs, ignore_errors=True)
            os.makedirs(workspace.home, DIRECTORY_MODE)
            os.makedirs(workspace.images, DIRECTORY_MODE, exist_ok=True)
            yield workspace
        finally:
            _remove(workspace.runs if keep else path)
    finally:
        os.close(mark)


def _remove(path: str) -> None:
    """Remove a directory even if a signal asks to stop during the removal; only the first signal raises."""
    try:
        shutil.rmtree(path, ignore_errors=True)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def _check(path: str) -> None:
    """Refuse a directory that another user may have created under a predictable name, or that contains other files."""
    facts = os.lstat(path)
    if not stat.S_ISDIR(facts.st_mode):
        raise BenchmarkError(f"{path} is not a directory; choose another --work-dir")
    if facts.st_uid != os.getuid() or stat.S_IMODE(facts.st_mode) & 0o077:
        raise BenchmarkError(f"{path} must be yours alone (mode 0700); choose another --work-dir")
    names = os.listdir(path)
    if names and MARK not in names:
        raise BenchmarkError(f"{path} holds other files; choose a new or empty directory as --work-dir")


def _lock(descriptor: int, path: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BenchmarkError(f"another run uses {path}; wait for it or choose another --work-dir") from None
