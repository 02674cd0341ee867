"""Print to stdout: text whose loss does not end a command, and results that must not be lost.

A command has done its work when it prints. If its text cannot be written, the program reports that at its end. Only
commands decorated with `run_for_output` fail because of it.
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
    """Replaces stdout while a command runs. Writing to it never fails; `failure` is the first error."""

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
        """Return whether it is a terminal."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """Return its descriptor."""
        return self.stream.fileno()

    def write(self, text: str) -> int:
        """Write text, or drop it after an error."""
        if not self._dropped:
            try:
                return self.stream.write(text)
            except OSError as error:
                self.fail(error)
        return len(text)

    def flush(self) -> None:
        """Write all buffered text, or drop it after an error."""
        if not self._dropped:
            try:
                self.stream.flush()
            except OSError as error:
                self.fail(error)

    def drop(self) -> None:
        """Drop everything that is written from now on."""
        self._dropped = True

    def fail(self, error: OSError) -> None:
        """Remember the first error, and prevent further attempts, such as Python's flush at exit."""
        if self.failure is None:
            self.failure = error
        self.drop()
        drop_stdout()


@contextmanager
def printing() -> Iterator[Printed]:
    """Replace stdout with a `Printed`, and yield it."""
    before = sys.stdout
    printed = Printed(before)
    sys.stdout = printed
    try:
        yield printed
    finally:
        printed.flush()
        sys.stdout = before


def drop_text() -> None:
    """Print nothing from now on, for -q."""
    if isinstance(sys.stdout, Printed):
        sys.stdout.drop()


def drop_stdout() -> None:
    """Discard everything printed from now on, because the reader has gone (`| head`) or writing failed."""
    with contextlib.suppress(OSError, ValueError):  # a stdout that is not a file has no descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def expect_printed() -> None:
    """Make sure that the text of a command was printed. A reader that closed the pipe is not an error.

    Raises:
        OutputError: the text could not be written.
    """
    sys.stdout.flush()
    if isinstance(sys.stdout, Printed):
        check_printed(sys.stdout)


def run_for_output(command: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Let a command that only shows something fail if it cannot print, unless it has failed anyway."""

    @wraps(command)
    def run(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        status = command(*args, **kwargs)
        if not status:
            expect_printed()
        return status

    return run


def check_printed(printed: Printed) -> None:
    """Do the same for a given stream.

    Raises:
        OutputError: the text could not be written.
    """
    if printed.failure is not None and not isinstance(printed.failure, BrokenPipeError):
        raise OutputError(printed.failure)


@contextmanager
def stdout_file() -> Iterator[BinaryIO]:
    """Yield stdout as a file for a result that must be complete.

    Raises:
        OutputError: it is closed or cannot be written.
        BrokenPipeError: the reader has closed the pipe.
    """
    if sys.__stdout__ is None:  # it was closed when the program started, and is /dev/null now
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
    """Wait until everything printed is on disk, if standard output is a file.

    Raises:
        OutputError: it could not be written.
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
    """Print and flush a line that a caller is waiting for."""
    click.echo(line)
    sys.stdout.flush()
