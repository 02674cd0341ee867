"""One mount from start to finish: checks, the FUSE session, signals, unmounting.

pyfuse3 supports one session per process, so a process serves one mount.
"""

from __future__ import annotations

import logging
import os
import signal
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pyfuse3
import trio

from backyfs.errors import MountError
from backyfs.host.fuse import FUSE_CONF, lets_others_in
from backyfs.host.mountpoints import check_mountpoint
from backyfs.host.mounttable import shown_mounts
from backyfs.model import JobKind, JobSpec
from backyfs.mount.contents import Contents
from backyfs.mount.operations import Operations
from backyfs.mount.overlay import OverlayDirectory, Scratch
from backyfs.mount.settings import Settings
from backyfs.ownfiles import find_own
from backyfs.remedies import Advice
from backyfs.work.job import Job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection

    from backyfs.repository import Repository

_log = logging.getLogger(__name__)

# 128 by default: requests of 128 KiB, few at a time. 2048 gives the largest requests, two at a time. With 4096, four
# concurrent readers took twice the time in the kernel.
_KERNEL_READ_AHEAD_KIB = 2048
_MAX_BACKGROUND = 64           # 12 by default: with 5 ms per read 1,500 MB/s instead of 530
_CONNECTIONS = "/sys/fs/fuse/connections"
_CHECK_JOB_S = 5.0
# Signals of signal(7) that keep their default action: the process is broken, cannot catch them, or survives them.
_FAULTS = frozenset(
    {
        signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS,
        signal.SIGKILL,
    }
)  # fmt: skip
_NOT_FATAL = frozenset(
    {
        signal.SIGCHLD, signal.SIGCONT, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
        signal.SIGURG, signal.SIGWINCH,
    }
)  # fmt: skip
# Allowed with `-o`. Other options of libfuse change what reads return or which users may read, and are ours to set.
_ALLOWED_OPTIONS = frozenset(
    {"allow_other", "allow_root", "auto_unmount", "ro", "noatime", "nodev", "noexec", "nosuid", "default_permissions"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MountRequest:
    """Where to mount, and how."""

    mountpoint: str
    options: tuple[str, ...] = ()  # as given with -o
    settings: Settings = field(default_factory=Settings)
    writable: str | None = None  # directory for writes to images; None: they are read-only
    discard: bool = False        # drop the writes at the end
    scratch: str | None = None   # directory for writes to one open file, which are dropped when it is closed


def check_options(options: tuple[str, ...]) -> None:
    """Check the options that were given with -o.

    Raises:
        MountError: one is unknown, asks for writing, or is not permitted to this user.
    """
    for option in options:
        if option not in _ALLOWED_OPTIONS:
            allowed = ", ".join(sorted(_ALLOWED_OPTIONS))
            raise MountError("is not known", subject=f"mount option {option!r}", remedy=f"allowed: {allowed}")
    for option in ("allow_other", "allow_root"):
        if option in options and os.geteuid() != 0 and not lets_others_in():
            raise MountError(
                "is reserved for root on this host",
                subject=option,
                remedy=f"as root, add the line `user_allow_other` to {FUSE_CONF}",
            )


def serve(
    repository: Repository,
    request: MountRequest,
    ready: Callable[[int | None], None],
    ending: Callable[[], None] = lambda: None,
    ending_signals: Collection[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
) -> None:
    """Mount the repository and serve it until it is unmounted or one of `ending_signals` arrives.

    Other signals that end a process by default are ignored: a mount without its process answers nothing.

    `ready` is called once the mount answers, with the read-ahead of the kernel in KiB; None if it could not be raised.
    `ending` is called when the mount must end without having been unmounted. It should cancel reads that wait for the
    limits of the storage, because they would keep the mount. Call this from the main thread.

    Raises:
        MountError: it cannot be mounted.
        JobLostError: another command considered this one dead; the mount is gone.
    """
    check_options(request.options)
    check_mountpoint(request.mountpoint, repository.own_paths)
    # After mounting, following a link there would ask the mount itself.
    request = replace(request, mountpoint=os.path.realpath(request.mountpoint))
    _check_device()
    spec = JobSpec(kind=JobKind.MOUNT, label=request.mountpoint)
    with (
        Job(repository.database, spec, only_reads=True, limits=repository.limits) as job,
        ExitStack() as opened,
    ):
        overlays: OverlayDirectory | Scratch | None = None
        if request.scratch is not None:
            overlays = opened.enter_context(Scratch(request.scratch))
        if request.writable is not None:
            _check_overlay_directory(request.writable, request.mountpoint, repository.own_paths)
            overlays = opened.enter_context(OverlayDirectory(request.writable, repository.uid, discard=request.discard))
        contents = Contents.of(repository, job, request.settings, overlays)
        callbacks = _Callbacks(ready=ready, ending=ending, signals=frozenset(ending_signals))
        trio.run(_serve, contents, request, job, callbacks)
    _log.info("%s is unmounted", request.mountpoint)


def _check_overlay_directory(path: str, mountpoint: str, own_paths: tuple[str, ...]) -> None:
    wanted = os.path.realpath(path)
    for other, what in ((mountpoint, "the mountpoint"), *((own, "the repository") for own in own_paths)):
        if os.path.commonpath((wanted, other)) in (wanted, other):
            raise MountError(f"overlaps {what} ({other})", subject=path, remedy=Advice.NAME_OVERLAY())
    if find_own(path, own_paths) is not None:  # by a bind mount
        raise MountError("is in the repository", subject=path, remedy=Advice.NAME_OVERLAY())


def _mount(operations: Operations, request: MountRequest) -> None:
    # default_permissions: the kernel checks modes, so allow_other alone does not make the images readable.
    options = {"default_permissions", "fsname=backyfs", "subtype=backyfs", *request.options}
    if request.writable is None and request.scratch is None:
        options.add("ro")
    try:
        pyfuse3.init(operations, request.mountpoint, options)
    except RuntimeError as error:
        raise MountError(
            f"cannot be mounted: {error}",
            subject=request.mountpoint,
            remedy="users need fusermount3 (package fuse3) and write permission to the directory",
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Callbacks:
    """Callbacks for the caller of `serve`, and the signals that end it."""

    ready: Callable[[int | None], None]
    ending: Callable[[], None]
    signals: frozenset[signal.Signals]


async def _serve(contents: Contents, request: MountRequest, job: Job, callbacks: _Callbacks) -> None:
    operations = Operations(contents)
    # Listen before mounting: a signal that arrives in between would leave a mount without its process.
    with trio.open_signal_receiver(*callbacks.signals, *_harmless_signals(callbacks.signals)) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, callbacks.signals)  # the starter may have blocked them
        _mount(operations, request)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_on_signal, signals, callbacks)
                nursery.start_soon(_end_without_job, job, callbacks.ending)
                nursery.start_soon(contents.tree.keep_fresh)
                nursery.start_soon(contents.damage.marker.run)
                nursery.start_soon(_announce, contents, request.mountpoint, callbacks.ready)
                await pyfuse3.main()
                nursery.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=True)  # also if it is in use: open files then answer ENOTCONN
    job.check()


def _harmless_signals(ending: Collection[int]) -> set[int]:
    """Return the signals that end a process by default and that a mount ignores.

    They get a handler, because programs that this process starts would inherit SIG_IGN.
    """
    others = signal.valid_signals() - _FAULTS - _NOT_FATAL - set(ending)
    return {number for number in others if signal.getsignal(number) is not signal.SIG_IGN}


async def _announce(contents: Contents, mountpoint: str, ready: Callable[[int | None], None]) -> None:
    with suppress(OSError):
        # The kernel resets its settings to those of libfuse when the two first talk to each other.
        await trio.to_thread.run_sync(os.statvfs, mountpoint, abandon_on_cancel=True)
    contents.statistics.kernel_read_ahead_kib = _tune_kernel(mountpoint)
    ready(contents.statistics.kernel_read_ahead_kib)


def _tune_kernel(mountpoint: str) -> int | None:
    """Let the kernel request more at a time, which only root may set up. Return its read-ahead in KiB, if raised.

    The settings apply to files opened from now on. `mountpoint` must not contain links: to follow one would ask the
    mount, and wait for this very task.
    """
    found = [mount for mount in shown_mounts() if mount.mountpoint == mountpoint]
    if not found or os.geteuid() != 0:
        return None
    device = found[-1].device
    # More concurrent requests of read-ahead, if the file system of connections is mounted.
    _write_setting(f"{_CONNECTIONS}/{device.partition(':')[2]}/max_background", _MAX_BACKGROUND)
    is_raised = _write_setting(f"/sys/class/bdi/{device}/read_ahead_kb", _KERNEL_READ_AHEAD_KIB)
    return _KERNEL_READ_AHEAD_KIB if is_raised else None


def _write_setting(path: str, number: int) -> bool:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(str(number))
    except OSError:
        return False
    return True


async def _end_on_signal(signals: AsyncIterator[int], callbacks: _Callbacks) -> None:
    async for number in signals:
        if number in callbacks.signals:
            _log.info("unmounting after %s", signal.Signals(number).name)
            callbacks.ending()
            pyfuse3.terminate()
        else:
            _log.debug("ignoring signal %d; SIGTERM unmounts", number)


async def _end_without_job(job: Job, ending: Callable[[], None]) -> None:
    while not job.lost:  # noqa: ASYNC110 - it is set by a thread, which has no trio.Event
        await trio.sleep(_CHECK_JOB_S)
    ending()
    pyfuse3.terminate()


def _check_device() -> None:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise MountError(
            "does not exist", subject="/dev/fuse", remedy="load the module (modprobe fuse), in a container pass it in"
        ) from None
    except OSError as error:
        raise MountError(
            f"cannot be opened: {error.strerror}", subject="/dev/fuse", remedy="check its owner and mode"
        ) from error
