"""The standard output: a file that has to reach the disk, or a pipe that nobody reads any more."""

from __future__ import annotations

import contextlib
import os
import stat
import sys

import click

from backyfs.errors import UsageError


def sync_stdout() -> None:
    """Wait until everything printed is on the disk, if the standard output was redirected to a file.

    Raises:
        UsageError: it does not get there.
    """
    sys.stdout.flush()
    try:
        number = sys.stdout.fileno()
    except OSError:  # a stdout that is not a file has no number
        return
    try:
        if stat.S_ISREG(os.fstat(number).st_mode):
            os.fsync(number)
    except OSError as error:
        raise UsageError(
            f"the standard output did not reach the disk: {error.strerror}; redirect it to another file system"
        ) from error


def drop_stdout() -> None:
    """Send what is printed from now on nowhere: who read it has had enough (`| head`).

    Python would complain otherwise, once more when it flushes at exit.
    """
    with contextlib.suppress(OSError, ValueError):  # a stdout that is no file has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def announce(line: str) -> None:
    """Print a line at once, for those who wait for it; that nobody reads it does not end the command."""
    try:
        click.echo(line)
        sys.stdout.flush()
    except BrokenPipeError:
        drop_stdout()
