"""Open and close the images of a mount, each with the layer that takes writes, if the mount has layers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from backyfs.mount.imagefile import ImageFile, WritableLayer

if TYPE_CHECKING:
    from backyfs.model import Version
    from backyfs.mount.overlay import OverlayDirectory, Scratch
    from backyfs.mount.pool import Pool
    from backyfs.mount.readers import Readers


class Images:
    """The images of one mount. Used by the tasks of one trio event loop."""

    def __init__(
        self, readers: Readers, overlays: OverlayDirectory | Scratch | None, layers: Pool, *, read_ahead_blocks: int
    ) -> None:
        """Read images with `readers`. With `overlays` they can be written to, in threads of `layers`."""
        self._readers = readers
        self._overlays = overlays
        self._layers = layers
        self._read_ahead_blocks = read_ahead_blocks
        self.is_writable = overlays is not None
        # Writes to an image appear in all files that show it, or else only in the file that wrote them.
        self.shows_changes = overlays is not None and overlays.is_shared
        self.has_scratch = overlays is not None and not overlays.is_shared

    async def open(
        self, version: Version, start: int, size_bytes: int, *, for_writing: bool = False, reads_ahead: bool = True
    ) -> ImageFile:
        """Open a slice of an image; the caller closes it.

        Raises:
            DatabaseError: the version cannot be held.
            MountError, OSError: its layer cannot be opened.
        """
        reader = await self._readers.open(version)
        try:
            writable = await self._open_layer(version, for_writing=for_writing)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._readers.close(reader)
            raise
        read_ahead_blocks = self._read_ahead_blocks if reads_ahead else 0
        return ImageFile(reader, start, size_bytes, read_ahead_blocks=read_ahead_blocks, writable=writable)

    async def close(self, file: ImageFile) -> None:
        """Close a file. Make the writes to it durable, unless its layer is temporary.

        Raises:
            OSError: that failed.
        """
        try:
            if self._overlays is not None and file.layer is not None:
                if self._overlays.is_shared:
                    await file.sync()
                await self._layers.run(self._overlays.release, file.layer)
        finally:
            await self._readers.close(file.reader)

    async def _open_layer(self, version: Version, *, for_writing: bool) -> WritableLayer | None:
        if self._overlays is None:
            return None
        open_layer = partial(self._overlays.open, version.uid, version.size_bytes, for_writing=for_writing)
        layer = await self._layers.run(open_layer)
        return None if layer is None else WritableLayer(layer=layer, pool=self._layers)
