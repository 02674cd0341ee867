"""The image of a version as attach sees it through a mount: its partitions, inside it and past its end."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from backyfs.errors import MountError
from backyfs.images.partitions import read_partitions

_log = logging.getLogger(__name__)

WHOLE = "data"  # the name of an image that has no partitions


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A partition of an image, or the image itself."""

    name: str            # number of the partition; `data`: the whole image
    file: str | None     # in the mount of the version; None: the partition is past the end of the image
    size_bytes: int      # of that file
    missing_bytes: int = 0  # further bytes in the partition table, past the end of the image
    overlaps: str = ""      # the name of another partition that overlaps it


def list_slices(directory: str) -> list[Slice]:
    """Return the partitions of an image, by number; if it has none, the image itself.

    `directory` is the directory of the version in a mount.

    Raises:
        MountError: the image cannot be read.
    """
    path = os.path.join(directory, WHOLE)
    try:
        with open(path, "rb", buffering=0) as image:
            size_bytes = os.fstat(image.fileno()).st_size

            def read(offset: int, size: int) -> bytes:
                return os.pread(image.fileno(), size, offset)

            table = read_partitions(read, size_bytes)
    except OSError as error:
        raise MountError(f"cannot be read: {error.strerror}", subject=path) from error
    if table.left_out:
        _log.warning("%d partitions of this image are left out: it has more than any real disk", table.left_out)
    inside = [
        Slice(
            name=str(each.number),
            file=os.path.join(directory, "partitions", str(each.number)),
            size_bytes=each.size,
            missing_bytes=each.missing,
            overlaps=str(table.overlapping.get(each.number, "")),
        )
        for each in table.partitions
    ]
    outside = [
        Slice(name=str(each.number), file=None, size_bytes=0, missing_bytes=each.size) for each in table.outside
    ]
    if not inside and not outside:
        return [Slice(name=WHOLE, file=path, size_bytes=size_bytes)]
    return sorted(inside + outside, key=lambda part: int(part.name))
