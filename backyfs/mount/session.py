"""One mount from beginning to end: checks, the FUSE session, signals, unmounting.

pyfuse3 has one session per process, so a process serves one mount.
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
from backyfs.host.mountpoints import check_mountpoint
from backyfs.host.mounttable import shown_mounts
from backyfs.mount.contents import Contents, Settings
from backyfs.mount.operations import Operations
from backyfs.mount.overlay import OverlayDirectory, Scratch
from backyfs.ownfiles import find_own
from backyfs.work.job import Job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection

    from backyfs.repository import Repository

_log = logging.getLogger(__name__)

# 128 by default: requests of 128 KiB, few at a time. 2048 gives the largest requests, two of them at once; with 4096
# four readers at once took twice the time in the kernel.
_KERNEL_READ_AHEAD_KIB = 2048
_MAX_BACKGROUND = 64           # 12 by default: with 5 ms per read 1,500 MB/s instead of 530
_CONNECTIONS = "/sys/fs/fuse/connections"
_CHECK_JOB_S = 5.0
# Signals of signal(7) that keep their default action: the process is broken, cannot catch them, or does not end.
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
    settings: Settings = field(default_factory=Settings)
    writable: str | None = None  # directory for what is written to images; None: they are read-only
    discard: bool = False        # what is written is forgotten at the end
    scratch: str | None = None   # directory for what is written to one open file and gone when it is closed


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


def serve(
    repository: Repository,
    request: MountRequest,
    ready: Callable[[int | None], None],
    ending: Callable[[], None] = lambda: None,
    ending_signals: Collection[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
) -> None:
    """Mount the repository and serve it until it is unmounted or one of `ending_signals` comes.

    Other signals that end a process by default do nothing: a mount whose process is gone answers nothing.

    `ready` is called once, as soon as the mount answers, with how far the kernel reads ahead in KiB; None: not as
    far as it could. `ending` is called when it is to end without having been unmounted: reads that wait for the limits
    of the storage would keep the mount, and are to be given up. To be called from the main thread.

    Raises:
        MountError: it cannot be mounted.
        JobLostError: another command took this one for dead; the mount is gone.
    """
    check_options(request.options)
    check_mountpoint(request.mountpoint, repository.own_paths)
    # Once it is mounted, following a link there would ask the mount.
    request = replace(request, mountpoint=os.path.realpath(request.mountpoint))
    _check_device()
    with Job(repository.database, f"mount {request.mountpoint}", only_reads=True) as job, ExitStack() as opened:
        overlays: OverlayDirectory | Scratch | None = None
        if request.scratch is not None:
            overlays = opened.enter_context(Scratch(request.scratch))
        if request.writable is not None:
            _check_overlay_directory(request.writable, request.mountpoint, repository.own_paths)
            overlays = opened.enter_context(OverlayDirectory(request.writable, repository.uid, discard=request.discard))
        contents = Contents(repository, job, request.settings, overlays)
        trio.run(_serve, contents, request, job, _Wishes(ready=ready, ending=ending, signals=frozenset(ending_signals)))
    _log.info("%s is unmounted", request.mountpoint)


def _check_overlay_directory(path: str, mountpoint: str, own_paths: tuple[str, ...]) -> None:
    wanted = os.path.realpath(path)
    for other, what in ((mountpoint, "the mountpoint"), *((own, "the repository") for own in own_paths)):
        if os.path.commonpath((wanted, other)) in (wanted, other):
            raise MountError(f"{path} overlaps {what} ({other}); name another directory with --writable")
    if find_own(path, own_paths) is not None:  # by a bind mount
        raise MountError(f"{path} is in the repository; name another directory with --writable")


def _mount(operations: Operations, request: MountRequest) -> None:
    # default_permissions: the kernel checks modes, so that allow_other alone gives nobody the images.
    options = {"default_permissions", "fsname=backyfs", "subtype=backyfs", *request.options}
    if request.writable is None and request.scratch is None:
        options.add("ro")
    try:
        pyfuse3.init(operations, request.mountpoint, options)
    except RuntimeError as error:
        raise MountError(
            f"{request.mountpoint} cannot be mounted: {error}; users need fusermount3 (package fuse3) and write "
            "permission to the directory"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wishes:
    """What the caller of `serve` wants to hear of, and what ends it."""

    ready: Callable[[int | None], None]
    ending: Callable[[], None]
    signals: frozenset[signal.Signals]


async def _serve(contents: Contents, request: MountRequest, job: Job, wishes: _Wishes) -> None:
    operations = Operations(contents)
    # Listening before there is a mount: a signal that comes between the two would leave it without its process.
    with trio.open_signal_receiver(*wishes.signals, *_harmless_signals(wishes.signals)) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, wishes.signals)  # whatever the starter had blocked
        _mount(operations, request)
        try:
            async with trio.open_nursery() as nursery:
                operations.background = nursery
                nursery.start_soon(_end_on_signal, signals, wishes)
                nursery.start_soon(_end_without_job, job, wishes.ending)
                nursery.start_soon(contents.keep_fresh)
                nursery.start_soon(contents.mark_damage)
                nursery.start_soon(_announce, contents, request.mountpoint, wishes.ready)
                await pyfuse3.main()
                nursery.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=True)  # also where it is in use: what is open then answers ENOTCONN
    job.check()


def _harmless_signals(ending: Collection[int]) -> set[int]:
    """Return the signals that end a process by default and mean nothing to a mount.

    They get a handler instead of SIG_IGN, which the programs that this process starts would inherit.
    """
    others = signal.valid_signals() - _FAULTS - _NOT_FATAL - set(ending)
    return {number for number in others if signal.getsignal(number) is not signal.SIG_IGN}


async def _announce(contents: Contents, mountpoint: str, ready: Callable[[int | None], None]) -> None:
    with suppress(OSError):
        # The kernel takes its settings back to what libfuse wants when it has talked to it for the first time.
        await trio.to_thread.run_sync(os.statvfs, mountpoint, abandon_on_cancel=True)
    contents.kernel_read_ahead_kib = _tune_kernel(mountpoint)
    ready(contents.kernel_read_ahead_kib)


def _tune_kernel(mountpoint: str) -> int | None:
    """Let the kernel ask for more at once, where that is permitted: to root. Return how far it reads ahead, in KiB.

    It holds for files opened from now on. `mountpoint` has no links in it: to follow one would ask the mount, and
    wait for this very task.
    """
    found = [mount for mount in shown_mounts() if mount.mountpoint == mountpoint]
    if not found or os.geteuid() != 0:
        return None
    device = found[-1].device
    # Where the file system of connections is mounted: more requests of read-ahead under way at once.
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


async def _end_on_signal(signals: AsyncIterator[int], wishes: _Wishes) -> None:
    async for number in signals:
        if number in wishes.signals:
            _log.info("unmounting after %s", signal.Signals(number).name)
            wishes.ending()
            pyfuse3.terminate()
        else:
            _log.debug("signal %d is ignored: SIGTERM unmounts", number)


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
