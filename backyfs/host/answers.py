"""Find out whether a mount answers. A separate process asks it, because a process that asks a hung mount may hang.

A mount is dead if its process ended without unmounting, as after `kill -9`. Every access to it fails with ENOTCONN.
"""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

PID_ATTRIBUTE = "user.backyfs.pid"  # of the root directory of a mount: the process that serves it
REPOSITORY_ATTRIBUTE = "user.backyfs.repository"  # of the root directory: the uid of the repository
_PID = re.compile(r"[1-9][0-9]{0,8}")
PATIENCE_S = 5.0
_DEAD = frozenset({errno.ENOTCONN, errno.ECONNABORTED})
_SCRIPT = f"""
import os, sys
try:
    print(os.getxattr(sys.argv[1], "{PID_ATTRIBUTE}").decode())
    print(os.getxattr(sys.argv[1], "{REPOSITORY_ATTRIBUTE}").decode())
    print(int(os.path.isdir(os.path.join(*sys.argv[1:]))))
except OSError as error:
    sys.exit(error.errno)
"""


class State(Enum):
    """How a mount behaves."""

    ANSWERS = "answers"  # or this user may not ask it
    DEAD = "dead"        # its process is gone
    SILENT = "silent"    # its process exists but does not answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer of a mount of ours."""

    state: State
    pid: int | None = None
    repository: str | None = None  # its uid
    has_directory: bool = False    # the requested directory exists


def ask(mountpoint: str, directory: str = "", *, patience_s: float = PATIENCE_S) -> Answer:
    """Ask a mount of ours for its process and repository, and for a directory. Take at most `patience_s`."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _SCRIPT, mountpoint, directory],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        errors="replace",
    )
    try:
        said, _ = process.communicate(timeout=patience_s)
    except subprocess.TimeoutExpired:
        process.kill()  # a process that waits for a mount can survive even that
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
        if process.stdout is not None:
            process.stdout.close()
        return Answer(state=State.SILENT)
    words = said.split()
    if process.returncode in _DEAD:
        return Answer(state=State.DEAD)
    return Answer(
        state=State.ANSWERS,
        pid=int(words[0]) if words and _PID.fullmatch(words[0]) else None,
        repository=words[1] if len(words) > 1 else None,
        has_directory=words[2:] == ["1"],
    )
