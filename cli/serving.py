"""Serve a mount until it ends, in the process that `mount` and `attach` leave running."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from backyfs.cli.allocator import share_freed_memory
from backyfs.cli.background import ending_signals
from backyfs.cli.notify import notify

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.cli.background import Starter
    from backyfs.cli.invocation import Invocation
    from backyfs.mount.session import MountRequest
    from backyfs.repository import Repository

_log = logging.getLogger("backyfs.cli")


def serve_mount(
    invocation: Invocation,
    mountpoint: str,
    request_of: Callable[[Repository], MountRequest],
    starter: Starter | None,
) -> None:
    """Mount the repository on an absolute path and serve it, within the hooks of `mount`.

    `request_of` returns how to mount an opened repository. `starter` is None in the foreground.

    Raises:
        MountError: it cannot be mounted.
    """
    from backyfs.mount.session import serve  # noqa: PLC0415 - pyfuse3, which the waiting process does not need

    share_freed_memory()
    signals = ending_signals(in_background=starter is not None)  # before hooks install their handlers
    with (
        invocation.hooks("mount", mountpoint=mountpoint),
        # Not `invocation.open_repository`, whose signal handlers would replace those of trio.
        invocation.service.repository(cached=True) as repository,
    ):
        try:
            serve(
                repository,
                request_of(repository),
                partial(_report_ready, mountpoint, starter),
                invocation.interrupted.set,
                signals,
            )
        finally:
            notify("STOPPING=1")


def _report_ready(mountpoint: str, starter: Starter | None, read_ahead_kib: int | None) -> None:
    speed = "" if read_ahead_kib is None else f"; the kernel reads {read_ahead_kib} KiB ahead"
    advice = "; Ctrl-C unmounts it" if starter is None else ""
    _log.info("%s is mounted%s%s", mountpoint, speed, advice)
    notify("READY=1")
    if starter is not None:
        starter.report_ready()
