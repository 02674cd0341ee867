"""How a target is named on the command line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from backyfs.errors import TargetError
from backyfs.schemes import FILE, path_of, scheme_of
from backyfs.targets.file import FileTarget
from backyfs.targets.limits import LimitedReadableTarget, LimitedTarget
from backyfs.targets.null import NullTarget
from backyfs.targets.protocol import ReadableTarget
from backyfs.targets.stream import StreamTarget

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.config import Config, IoConfig
    from backyfs.targets.protocol import Target

STDOUT = "-"


def target_path(uri: str) -> str | None:
    """Return the path of the file or device that `uri` names; None where it names something else.

    Raises:
        TargetError: it is a URI of an unknown kind.
    """
    scheme = scheme_of(uri)
    if uri == STDOUT or scheme == "null":
        return None
    if scheme != FILE:
        raise TargetError(
            f"{uri}: targets of kind {scheme}:// are not known; give a path, file://PATH, null:// or - for stdout"
        )
    return path_of(uri)


def open_target(
    uri: str,
    size_bytes: int,
    config: Config | None = None,
    *,
    replace: bool = False,
    kept_bytes: int | None = None,
    start: int = 0,
    stop: Callable[[], bool] = lambda: False,
    syncs: bool = True,
    examine: Callable[[int], None] = lambda _fd: None,
) -> Target:
    """Open what an image of this size is to be written to: a path, `file://PATH`, `null://`, or `-` for stdout.

    `config` says how many writes to it may be under way at once; without one there is no limit, and stdout has one
    at a time anyway. `replace`, `kept_bytes`, `syncs` and `examine` are for files and devices: see `FileTarget`; the
    last two also for a stdout that was redirected to one. Threads that wait for a slow reader of stdout ask `stop`
    whether the command is to end; what it gets begins at byte `start` of the image.

    Raises:
        TargetError: it exists and may not be replaced, is too small, is in use, cannot be written, or is a
            terminal.
    """
    path = target_path(uri)
    if path is not None:
        target = FileTarget(
            path, size_bytes, replace=replace, kept_bytes=kept_bytes, syncs=syncs, examine=examine
        )
        return _limited(target, None if config is None else config.io_file)
    if uri != STDOUT:
        return _limited(NullTarget(), None if config is None else config.io_null)
    if sys.__stdout__ is None:  # its number may be that of another file by now
        raise TargetError("the standard output is closed; redirect it, or name a file or device")
    return StreamTarget(sys.__stdout__.fileno(), start=start, stop=stop, syncs=syncs, examine=examine)


def _limited(target: Target, limits: IoConfig | None) -> Target:
    if limits is None or limits.simultaneous_writes is None:
        return target
    if isinstance(target, ReadableTarget):
        return LimitedReadableTarget(target, simultaneous_writes=limits.simultaneous_writes)
    return LimitedTarget(target, simultaneous_writes=limits.simultaneous_writes)
