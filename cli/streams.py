"""Make descriptors 0, 1 and 2 and their text streams safe to use, however the program was started.

A caller may have closed any of them, filled the disk behind them, made them non-blocking, or chosen a charset that
lacks characters. None of that may end a command, or let output be written into a database file.
"""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_ESCAPING = "backyfs-escape"  # name of the error handler below
_NOT_UTF8 = range(0xDC80, 0xDD00)  # how Python represents bytes that are not UTF-8: PEP 383


def settle_streams() -> None:
    """Open those of descriptors 0, 1 and 2 that are closed, and create robust streams on them.

    Call this before opening anything else: the next file would get the number of a closed descriptor.
    """
    for fd in (0, 1, 2):
        _open_if_closed(fd)
    codecs.register_error(_ESCAPING, _escape)
    # As for file names elsewhere in Python, bytes that do not fit the charset are preserved.
    sys.stdin = open(0, encoding=_encoding(sys.stdin), errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(1)),
        encoding=_encoding(sys.stdout),
        errors=_ESCAPING,
        line_buffering=os.isatty(1),
    )
    # Not buffered: a signal handler may write while the main thread does.
    sys.stderr = io.TextIOWrapper(
        _Diagnostics(2),
        encoding=_encoding(sys.stderr),
        errors="backslashreplace",
        write_through=True,
    )


def _open_if_closed(fd: int) -> None:
    if _is_open(fd):
        return
    try:
        opened = os.open(os.devnull, os.O_RDWR)
    except OSError:  # a root directory without /dev: writing will fail, but harm nothing
        opened = os.open("/", os.O_RDONLY)
    os.dup2(opened, fd)  # inheritable, for programs that this one starts
    if opened != fd:
        os.close(opened)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _encoding(stream: TextIO | None) -> str:
    return "utf-8" if stream is None else stream.encoding


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    r"""Return bytes of a file name unchanged, and characters missing from the charset as `\xe9`, `\u20ac` and so on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    one = error.object[error.start]
    if ord(one) in _NOT_UTF8:
        return bytes([ord(one) - 0xDC00]), error.start + 1
    return one.encode("ascii", "backslashreplace"), error.start + 1


class _Descriptor(io.RawIOBase):
    """A descriptor, blocking or not, that writes all bytes or raises OSError."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def write(self, data: ReadableBuffer) -> int:
        with memoryview(data) as whole, whole.cast("B") as rest:
            position = 0
            while position < len(rest):
                try:
                    position += os.write(self._fd, rest[position:])
                except BlockingIOError:  # any program that shares the terminal or pipe can make it non-blocking
                    select.select([], [self._fd], [])
            return len(rest)


class _Diagnostics(_Descriptor):
    """Stderr. Text that cannot be written is dropped without an error."""

    def write(self, data: ReadableBuffer) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes
