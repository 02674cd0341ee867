"""A target that forgets what it is given: for measuring how fast the rest of a restore is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backyfs.model import Buffer


class NullTarget:
    """Nothing, of any size."""

    begins_empty = True  # so that nobody tells it of holes

    def write(self, offset: int, block: Buffer) -> None:
        """Forget a block."""

    def write_zeros(self, offset: int, length: int) -> None:
        """Do nothing."""

    def leave(self, offset: int, length: int) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing: nothing is open."""
