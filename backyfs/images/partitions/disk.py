"""The image that is searched for a partition table. Parts of it may be missing; remarks record anything unusual.

Neither the content of the image nor a failed read raises an error here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.errors import BackyfsError

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_REMARKS = 100  # a malicious table could cause thousands


class Disk:
    """An image, and remarks about it. Used by one thread."""

    def __init__(self, read: Callable[[int, int], bytes], image_bytes: int) -> None:
        """Read with a function of offset and size, which may raise BackyfsError or OSError."""
        self._read = read
        self._remarks: list[str] = []
        self._left_out = 0
        self._errors: set[str] = set()
        self.image_bytes = image_bytes

    def read(self, offset: int, size: int) -> bytes | None:
        """Return `size` bytes; None if some of them are outside the image or cannot be read."""
        if offset < 0 or offset + size > self.image_bytes:
            return None
        try:
            return self._read(offset, size)
        except (BackyfsError, OSError) as error:
            self._note_error(offset, error)
            return None

    def remark(self, sentence: str) -> None:
        """Record something unusual, once."""
        if sentence in self._remarks:
            return
        if len(self._remarks) < _MOST_REMARKS:
            self._remarks.append(sentence)
        else:
            self._left_out += 1

    @property
    def remarks(self) -> tuple[str, ...]:
        """Everything unusual, in the order in which it was found."""
        if self._left_out == 0:
            return tuple(self._remarks)
        return (*self._remarks, f"{self._left_out} further remarks are left out.")

    def _note_error(self, offset: int, error: Exception) -> None:
        text = str(error).rstrip(".")
        if text not in self._errors:  # several reads meet the same damaged block
            self._errors.add(text)
            self.remark(f"The image cannot be read at byte {offset}: {text}.")
