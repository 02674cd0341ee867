"""The standard output, when nobody reads it any more."""

from __future__ import annotations

import contextlib
import os
import sys

import click


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
