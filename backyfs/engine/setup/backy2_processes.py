"""Find running commands of backy2 by the lock files they hold and by the names of processes.

backy2 does not use the table of jobs. Processes of other users are found only if the kernel shows them, and those of
other hosts not at all.
"""

from __future__ import annotations

import fcntl
import glob
import os
from contextlib import suppress

_PROGRAM = "backy2"
_OURS = "backyfs"


def held_locks(lock_dir: str | None) -> list[str]:
    """Return the lock files of backy2 in this directory that a process has locked; stale files do not count."""
    if lock_dir is None:
        return []
    return [path for path in sorted(glob.glob(os.path.join(glob.escape(lock_dir), "backy_*.lock"))) if _is_locked(path)]


def processes(title: str) -> list[str]:
    """Describe the processes that are backy2, under its own name or the configured `title`."""
    found: list[str] = []
    try:
        names = os.listdir("/proc")
    except FileNotFoundError:  # for example in a bare chroot
        return found
    for name in names:
        if name.isdigit() and int(name) != os.getpid():
            with suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                words = [os.fsdecode(word) for word in file.read().rstrip(b"\0").split(b"\0")]
                if _is_backy2(words, title):
                    found.append(f"process {name}: {' '.join(words)[:80]}")
    return found


def _is_locked(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Shared, so that two commands that check at the same time do not mistake each other for backy2.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _is_backy2(words: list[str], title: str) -> bool:
    """Return whether a command line is that of backy2: it begins with its title, or is Python with its script."""
    first = words[0]
    titles = [name for name in (_PROGRAM, title) if name != _OURS]
    if any(first == name or first.startswith(f"{name} [") for name in titles):
        return not first.startswith(f"{title} [{_OURS}: ")  # see backyfs.cli.title
    program = os.path.basename(first)
    if program.startswith("python"):
        arguments = [word for word in words[1:4] if not word.startswith("-")]
        return bool(arguments) and os.path.basename(arguments[0]) == _PROGRAM
    return program == _PROGRAM
