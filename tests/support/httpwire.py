"""HTTP/1.1 as bytes on a connection: heads, and bodies that are copied without looking at them."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.model import Buffer

    Sink = Callable[[Buffer, bool], None]  # a part of a body, and whether it is the last one

MOST_READ = 1 << 20  # bytes at a time
_MOST_HEAD = 1 << 16
_END = b"\r\n\r\n"
_BODILESS = {204, 304}


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a request or an answer, with the empty line that ends it."""

    raw: bytes

    @property
    def first(self) -> list[str]:
        """The three words of the first line."""
        return self.raw.partition(b"\r\n")[0].decode("latin-1").split(" ", 2)

    def get(self, name: str) -> str | None:
        """Return the value of a header."""
        for line in self.raw.split(b"\r\n")[1:]:
            found, _, value = line.partition(b":")
            if found.decode("latin-1").lower() == name.lower():
                return value.decode("latin-1").strip()
        return None

    def with_length(self, size: int) -> Head:
        """Return the same head with another Content-Length, which is at most the one it has."""
        lines = self.raw.split(b"\r\n")
        for number, line in enumerate(lines):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                lines[number] = b"%s: %d" % (name, min(int(value), size))
        return Head(b"\r\n".join(lines))

    @property
    def is_chunked(self) -> bool:
        """Whether each part of the body states its own length."""
        return (self.get("Transfer-Encoding") or "").lower() == "chunked"

    @property
    def length(self) -> int:
        """The Content-Length, or 0."""
        return int(self.get("Content-Length") or 0)

    @property
    def ends_connection(self) -> bool:
        """Whether the connection ends after this."""
        return (self.get("Connection") or "").lower() == "close"


class Wire:
    """One end of a connection. One thread reads it."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._kept = b""  # bytes read beyond the head
        self._buffer = memoryview(bytearray(MOST_READ))

    def read_head(self) -> Head | None:
        """Return the next head; None: the other side has closed the connection.

        Raises:
            EOFError: it closed the connection within a head.
        """
        while _END not in self._kept:
            more = self.socket.recv(_MOST_HEAD)
            if not more and not self._kept:
                return None
            if not more or len(self._kept) > _MOST_HEAD:
                raise EOFError
            self._kept += more
        raw, _, self._kept = self._kept.partition(_END)
        return Head(raw + _END)

    def copy_body(self, head: Head, sink: Sink, most: int) -> None:
        """Hand the body that follows a head to a sink, as it is on the wire, in parts of at most this size.

        A body without any length counts as absent.

        Raises:
            EOFError: it is incomplete.
        """
        if head.is_chunked:
            self._copy_chunks(sink, most)
        else:
            self._copy(head.length, sink, most, is_end=True)

    def _copy_chunks(self, sink: Sink, most: int) -> None:
        while True:
            line = self._read_line()
            sink(line, False)
            size = int(line.partition(b";")[0], 16)
            if size == 0:
                break
            self._copy(size + 2, sink, most, is_end=False)
        while line != b"\r\n":  # trailers
            line = self._read_line()
            sink(line, line == b"\r\n")

    def _copy(self, size: int, sink: Sink, most: int, *, is_end: bool) -> None:
        while self._kept and size > 0:
            part, self._kept = self._kept[: min(size, most)], self._kept[min(size, most) :]
            size -= len(part)
            sink(part, is_end and size == 0)
        while size > 0:
            count = self.socket.recv_into(self._buffer, min(size, most, MOST_READ))
            if count == 0:
                raise EOFError
            size -= count
            sink(self._buffer[:count], is_end and size == 0)

    def _read_line(self) -> bytes:
        while b"\r\n" not in self._kept:
            more = self.socket.recv(_MOST_HEAD)
            if not more:
                raise EOFError
            self._kept += more
        line, _, self._kept = self._kept.partition(b"\r\n")
        return line + b"\r\n"


def has_body(method: str, answer: Head) -> bool:
    """Return whether an answer to this method has a body of one byte or more."""
    return method != "HEAD" and int(answer.first[1]) not in _BODILESS and (answer.is_chunked or answer.length > 0)
