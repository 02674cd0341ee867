"""What commands print: text that may get lost without ending the command, and results that may not.

A command has done its work when it prints. That its text cannot be written is reported at the end of the program,
and changes the status only of commands that are run for their output: those are decorated with `run_for_output`.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TextIO, TypeVar

import click

from backyfs.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


class Printed(io.TextIOBase):
    """Stands for stdout while a command runs. Writing to it never fails; `failure` is what went wrong first."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure: OSError | None = None
        self._dropped = False

    @property
    def encoding(self) -> str:  # type: ignore[override]  # nothing sets it
        """Return the charset of the stream."""
        return self.stream.encoding

    def writable(self) -> bool:
        """Return True."""
        return True

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """Return its descriptor."""
        return self.stream.fileno()

    def write(self, text: str) -> int:
        """Write text, or lose it."""
        if not self._dropped:
            try:
                return self.stream.write(text)
            except OSError as error:
                self.fail(error)
        return len(text)

    def flush(self) -> None:
        """Have all text written that was taken so far, or lose it."""
        if not self._dropped:
            try:
                self.stream.flush()
            except OSError as error:
                self.fail(error)

    def drop(self) -> None:
        """Print nothing of what is written from now on."""
        self._dropped = True

    def fail(self, error: OSError) -> None:
        """Remember why nothing can be written, and let nobody try again: Python would when it flushes at exit."""
        if self.failure is None:
            self.failure = error
        self.drop()
        drop_stdout()


@contextmanager
def printing() -> Iterator[Printed]:
    """Let commands print to a `Printed`, which is given."""
    before = sys.stdout
    printed = Printed(before)
    sys.stdout = printed
    try:
        yield printed
    finally:
        printed.flush()
        sys.stdout = before


def drop_text() -> None:
    """Print nothing from now on: what -q asks for."""
    if isinstance(sys.stdout, Printed):
        sys.stdout.drop()


def drop_stdout() -> None:
    """Send what is printed from now on nowhere: who read it has had enough (`| head`), or it cannot be written."""
    with contextlib.suppress(OSError, ValueError):  # a stdout that is no file has no number
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def expect_printed() -> None:
    """Make sure that the text of a command that is run for it got out. A reader who has had enough is fine.

    Raises:
        OutputError: it did not.
    """
    sys.stdout.flush()
    if isinstance(sys.stdout, Printed):
        check_printed(sys.stdout)


def run_for_output(command: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Let a command that only shows something fail if that cannot be printed, unless its status says more."""

    @wraps(command)
    def run(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        status = command(*args, **kwargs)
        if not status:
            expect_printed()
        return status

    return run


def check_printed(printed: Printed) -> None:
    """Make sure of it where the stream is known.

    Raises:
        OutputError: what was printed did not get out.
    """
    if printed.failure is not None and not isinstance(printed.failure, BrokenPipeError):
        raise OutputError(printed.failure)


@contextmanager
def stdout_file() -> Iterator[BinaryIO]:
    """Give stdout as a file for a result, every byte of which counts.

    Raises:
        OutputError: it is closed, or cannot be written.
        BrokenPipeError: nobody reads it any more.
    """
    if sys.__stdout__ is None:  # since the program was started; it is /dev/null now
        raise OutputError
    stream = sys.stdout.stream if isinstance(sys.stdout, Printed) else sys.stdout
    try:
        yield stream.buffer
        stream.buffer.flush()
        _sync(stream)
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_stdout()
        raise OutputError(error) from error


def sync_stdout() -> None:
    """Wait until everything printed is on the disk, if the standard output was redirected to a file.

    Raises:
        OutputError: it does not get there.
    """
    expect_printed()
    try:
        _sync(sys.stdout)
    except OSError as error:
        raise OutputError(error) from error


def _sync(stream: TextIO) -> None:
    try:
        number = stream.fileno()
    except io.UnsupportedOperation:  # a stream of a test has no descriptor
        return
    if stat.S_ISREG(os.fstat(number).st_mode):
        os.fsync(number)


def announce(line: str) -> None:
    """Print a line at once, for those who wait for it."""
    click.echo(line)
    sys.stdout.flush()
