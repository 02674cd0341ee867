"""Check whether this host is fit for a repository: space, clock, FUSE."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from backyfs.engine.setup.findings import Finding, Grade
from backyfs.errors import ConfigError, DatabaseError
from backyfs.host.fuse import missing_for_fuse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from backyfs.errors import BackyfsError

_LITTLE_BYTES = 1 << 30       # free space: less is a warning
_LITTLE_PART = 0.02
_TOO_LITTLE_BYTES = 64 << 20  # less counts as none
_FIRST_YEAR, _LAST_YEAR = 2024, 2100  # outside of them a clock must be wrong


def check_writable(path: str) -> None:
    """Check that SQLite can write to a database.

    Raises:
        DatabaseError: it cannot.
    """
    for needed in (path, os.path.dirname(os.path.abspath(path))):  # SQLite creates files next to it
        if not os.access(needed, os.W_OK) or os.statvfs(needed).f_flag & os.ST_RDONLY:
            raise DatabaseError(
                "cannot be written", subject=needed, remedy="check its owner and mode, and how it is mounted"
            )


def free_space(path: str, error: type[BackyfsError]) -> tuple[Grade, str]:
    """Return whether the file system of a path has enough free space.

    Raises:
        BackyfsError: it has hardly any; of the class `error`.
    """
    about = os.statvfs(path)
    free, total = about.f_bavail * about.f_frsize, about.f_blocks * about.f_frsize
    fact = f"{free / (1 << 30):.1f} GiB of {total / (1 << 30):.1f} GiB are free at {path}"
    if free < _TOO_LITTLE_BYTES:
        raise error(fact, remedy="make room")
    if about.f_files and not about.f_favail:
        raise error(
            "can hold no more files, however much space is free (df -i)", subject=path, remedy="make room"
        )
    if free < _LITTLE_BYTES or free < total * _LITTLE_PART:
        return Grade.WARNING, f"only {fact}; make room before the next backups"
    return Grade.OK, fact


def check_clock(now: datetime) -> Iterator[Finding]:
    """Check whether the clock of this host can be right."""
    if _FIRST_YEAR <= now.year <= _LAST_YEAR:
        yield Finding(check="clock", grade=Grade.OK, message=f"it is {now:%Y-%m-%d %H:%M:%S} UTC")
    else:
        message = f"the clock of this host says {now:%Y-%m-%d %H:%M} UTC; set it, because versions are dated by it"
        yield Finding(check="clock", grade=Grade.FAILED, message=message, exit_status=ConfigError.exit_status)


def check_fuse() -> Iterator[Finding]:
    """Check whether versions can be mounted here."""
    missing = missing_for_fuse()
    for message in missing:
        yield Finding(check="fuse", grade=Grade.WARNING, message=message)
    if not missing:
        yield Finding(check="fuse", grade=Grade.OK, message="versions can be mounted")
