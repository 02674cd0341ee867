"""One mount from beginning to end: checks, the FUSE session, signals, unmounting.

pyfuse3 has one session per process, so a process serves one mount.
"""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import pyfuse3
import trio

from backyfs.blocks import load_block
from backyfs.engine.job import Job
from backyfs.errors import MountError
from backyfs.mount.cache import BlockCache
from backyfs.mount.mountpoints import check_mountpoint, list_mounts
from backyfs.mount.operations import Operations

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from backyfs.repository import Repository

_log = logging.getLogger(__name__)

DEFAULT_CACHE_BYTES = 256 << 20  # 64 blocks of 4 MiB
DEFAULT_READ_AHEAD_BYTES = 32 << 20
_KERNEL_READ_AHEAD_KIB = 4096  # 128 by default: requests of 128 KiB, few at a time
_CHECK_JOB_S = 5.0
_FUSE_CONF = "/etc/fuse.conf"
# What `-o` may say. The rest of libfuse's options change what a read gives or who may read, and are ours.
_ALLOWED_OPTIONS = frozenset(
    {"allow_other", "allow_root", "auto_unmount", "ro", "noatime", "nodev", "noexec", "nosuid", "default_permissions"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MountRequest:
    """Where to mount, and how."""

    mountpoint: str
    options: tuple[str, ...] = ()  # as given with -o
    cache_bytes: int = DEFAULT_CACHE_BYTES
    workers: int | None = None     # threads that load blocks; None: one more than there are processors
    read_ahead_bytes: int = DEFAULT_READ_AHEAD_BYTES  # ahead of each sequential reader; 0: none


def check_options(options: tuple[str, ...]) -> None:
    """Check options that were given with -o.

    Raises:
        MountError: one is unknown, asks for writing, or is not permitted to this user.
    """
    for option in options:
        if option not in _ALLOWED_OPTIONS:
            allowed = ", ".join(sorted(_ALLOWED_OPTIONS))
            raise MountError(f"mount option {option!r} is not known; allowed: {allowed}")
    for option in ("allow_other", "allow_root"):
        if option in options and os.geteuid() != 0 and not _user_allow_other():
            raise MountError(
                f"{option} is not permitted to users here; as root, write a line `user_allow_other` into {_FUSE_CONF}"
            )


def serve(repository: Repository, request: MountRequest, ready: Callable[[], None]) -> None:
    """Mount the repository and serve it until it is unmounted or SIGINT or SIGTERM comes.

    `ready` is called once, as soon as the mount answers. To be called from the main thread.

    Raises:
        MountError: it cannot be mounted.
        JobLostError: another command took this one for dead; the mount is gone.
    """
    check_options(request.options)
    check_mountpoint(request.mountpoint, repository.own_paths)
    # Once it is mounted, following a link there would ask the mount.
    request = replace(request, mountpoint=os.path.realpath(request.mountpoint))
    _check_device()
    workers = request.workers or len(os.sched_getaffinity(0)) + 1
    with Job(repository.database, f"mount {request.mountpoint}") as job:
        cache = BlockCache(partial(load_block, repository.blocks), request.cache_bytes, workers)
        # Of a cache that several readers share, what is read ahead of one must not push out the rest.
        ahead = min(request.read_ahead_bytes, request.cache_bytes // 2)
        operations = Operations(repository, cache, job, read_ahead_bytes=ahead)
        trio.run(_serve, operations, request, job, ready)
    _log.info("%s is unmounted", request.mountpoint)


def _mount(operations: Operations, request: MountRequest) -> None:
    # default_permissions: the kernel checks modes, so that allow_other alone gives nobody the images.
    options = {"ro", "default_permissions", "fsname=backyfs", "subtype=backyfs", *request.options}
    try:
        pyfuse3.init(operations, request.mountpoint, options)
    except RuntimeError as error:
        raise MountError(
            f"{request.mountpoint} cannot be mounted: {error}; users need fusermount3 (package fuse3) and write "
            "permission to the directory"
        ) from error


async def _serve(operations: Operations, request: MountRequest, job: Job, ready: Callable[[], None]) -> None:
    # Listening before there is a mount: a signal that comes between the two would leave it without its process.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        _mount(operations, request)
        try:
            _raise_kernel_read_ahead(request.mountpoint)
            async with trio.open_nursery() as nursery:
                operations.background = nursery
                nursery.start_soon(_end_on_signal, signals)
                nursery.start_soon(_end_without_job, job)
                ready()
                await pyfuse3.main()
                nursery.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=True)  # also where it is in use: what is open then answers ENOTCONN
    job.check()


def _raise_kernel_read_ahead(mountpoint: str) -> None:
    """Let the kernel ask for more at once, where that is permitted: to root. It holds for files opened from now on.

    `mountpoint` has no links in it: to follow one would ask the mount, which nobody answers for yet.
    """
    found = [mount for mount in list_mounts() if mount.mountpoint == mountpoint]
    if not found or os.geteuid() != 0:
        return
    path = f"/sys/class/bdi/{found[-1].device}/read_ahead_kb"
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(str(_KERNEL_READ_AHEAD_KIB))
    except OSError as error:
        _log.info("the kernel reads 128 KiB ahead: %s cannot be written (%s)", path, error.strerror)
        return
    _log.debug("the kernel reads %d KiB ahead", _KERNEL_READ_AHEAD_KIB)


async def _end_on_signal(signals: AsyncIterator[int]) -> None:
    async for number in signals:
        _log.info("unmounting after %s", signal.Signals(number).name)
        pyfuse3.terminate()


async def _end_without_job(job: Job) -> None:
    while not job.lost:  # noqa: ASYNC110 - it is set by a thread, which has no trio.Event
        await trio.sleep(_CHECK_JOB_S)
    pyfuse3.terminate()


def _check_device() -> None:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise MountError(
            "/dev/fuse does not exist; load the module (modprobe fuse), in a container pass it in"
        ) from None
    except OSError as error:
        raise MountError(f"/dev/fuse cannot be opened: {error.strerror}; check its owner and mode") from error


def _user_allow_other() -> bool:
    try:
        with open(_FUSE_CONF, encoding="utf-8", errors="replace") as lines:
            return any(line.strip() == "user_allow_other" for line in lines)
    except OSError:
        return False
