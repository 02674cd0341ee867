"""`backyfs mount`: mount all versions as a read-only file system.

In the background the program starts itself once more, in the foreground, and waits until that one says that
the mount is ready: a process that is to serve FUSE has threads and cannot fork.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from backyfs.cli.allocator import share_freed_memory
from backyfs.cli.background import detach
from backyfs.cli.notify import notify
from backyfs.cli.sizes import Size
from backyfs.errors import UsageError

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation
    from backyfs.mount.contents import Settings
    from backyfs.repository import Repository

_log = logging.getLogger("backyfs.cli")
_READY = b"ready"
_CACHE_SIZE = "256M"  # as DEFAULT_CACHE_BYTES of mount.contents, which --help does not load
_READ_AHEAD = "32M"   # as DEFAULT_READ_AHEAD_BYTES there
_TIMEOUT_S = 60.0     # as DEFAULT_PATIENCE_S of mount.pool


@click.command()
@click.argument("mountpoint")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground.")
@click.option("-o", "options", multiple=True, metavar="OPTION[,OPTION]", help="Mount options, such as allow_other.")
@click.option(
    "--cache-size",
    type=Size(),
    default=_CACHE_SIZE,
    show_default=True,
    metavar="SIZE",
    help="Memory for opened blocks.",
)
@click.option(
    "--read-ahead",
    type=Size(),
    default=_READ_AHEAD,
    show_default=True,
    metavar="SIZE",
    help="How far to load ahead of each sequential reader; 0 is not at all.",
)
@click.option(
    "--workers", type=click.IntRange(1, 256), metavar="N", help="Threads that load blocks.  [default: processors + 1]"
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1),
    default=_TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="When a storage or database that does not answer is an input/output error.",
)
@click.option("--version", "versions", multiple=True, metavar="VERSION", help="Show this version only. Repeatable.")
@click.option(
    "--name", "names", multiple=True, metavar="NAME", help="Show this name, or shell pattern, only. Repeatable."
)
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Show versions with this tag only. Repeatable.")
@click.option(
    "--writable", type=click.Path(), metavar="DIRECTORY", help="Let images be written to; keep what is written there."
)
@click.option("--discard", is_flag=True, help="Forget what was written to images, at the start and at the end.")
@click.option("--ready-fd", type=int, hidden=True, help="Tell this descriptor when ready, then detach.")
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    mountpoint: str,
    foreground: bool,
    options: tuple[str, ...],
    ready_fd: int | None,
    writable: str | None,
    discard: bool,
    versions: tuple[str, ...],
    **settings: Any,
) -> int:
    """Mount all versions below MOUNTPOINT, read-only.

    Returns when the mount can be used, and goes on in the background. Each version is a file
    by_version_uid/UID/data, also reached through by_name/NAME/; loop-mount it to get at the files in it, or let
    `backyfs attach` do that.
    """
    invocation: Invocation = context.obj
    mountpoint = os.path.abspath(mountpoint)
    if discard and writable is None:
        raise UsageError("--discard forgets what is written, and nothing can be without --writable DIRECTORY")
    writable = None if writable is None else os.path.abspath(writable)
    if not foreground:
        return _start_in_background(invocation, {**context.params, "mountpoint": mountpoint, "writable": writable})
    if ready_fd is not None:
        os.set_inheritable(ready_fd, False)  # the helper of auto_unmount would keep it open: no end to wait for
    from backyfs.mount.session import MountRequest, serve  # noqa: PLC0415 - the waiting process needs no pyfuse3

    share_freed_memory()
    words = tuple(word for option in options for word in option.split(",") if word)
    with invocation.hooks("mount", mountpoint=mountpoint), invocation.open_repository() as repository:
        request = MountRequest(
            mountpoint=mountpoint,
            options=words,
            settings=_settings(repository, versions, **settings),
            writable=writable,
            discard=discard,
        )
        try:
            serve(repository, request, partial(_tell_ready, mountpoint, ready_fd), invocation.interrupted.set)
        finally:
            notify("STOPPING=1")
    return 0


def _settings(
    repository: Repository,
    versions: tuple[str, ...],
    *,
    cache_size: int,
    read_ahead: int,
    workers: int | None,
    timeout: float,
    names: tuple[str, ...],
    tags: tuple[str, ...],
) -> Settings:
    from backyfs.metadata.versions import find_version  # noqa: PLC0415 - as above
    from backyfs.mount.contents import Settings  # noqa: PLC0415
    from backyfs.mount.selection import Selection  # noqa: PLC0415

    with repository.database.read() as connection:
        uids = frozenset(find_version(connection, version).uid for version in versions)
    return Settings(
        cache_bytes=cache_size,
        read_ahead_bytes=read_ahead,
        workers=workers,
        patience_s=timeout,
        selection=Selection(uids=uids, names=names, tags=frozenset(tags)),
    )


def _tell_ready(mountpoint: str, ready_fd: int | None, read_ahead_kib: int | None) -> None:
    speed = "" if read_ahead_kib is None else f"; the kernel reads {read_ahead_kib} KiB ahead"
    advice = "; Ctrl-C unmounts it" if ready_fd is None else ""
    _log.info("%s is mounted%s%s", mountpoint, speed, advice)
    notify("READY=1")
    if ready_fd is not None:
        detach()
        os.write(ready_fd, _READY)
        os.close(ready_fd)


def _start_in_background(invocation: Invocation, parameters: dict[str, Any]) -> int:
    reader, writer = os.pipe()
    # -P: without it Python would look for modules in the current directory first, whoever owns that.
    arguments = [sys.executable, "-P", "-m", "backyfs.cli", *invocation.as_arguments(), "mount"]
    arguments += _as_arguments({**parameters, "foreground": True, "ready_fd": writer})
    child = subprocess.Popen(arguments, pass_fds=[writer])
    os.close(writer)
    with open(reader, "rb") as answer:
        if answer.read() == _READY:
            return 0
    return child.wait()  # it has told on stderr what is wrong


def _as_arguments(parameters: dict[str, Any]) -> list[str]:
    """Return the arguments that say what these parameters of the command say."""
    arguments = []
    for parameter in command.params:
        assert parameter.name is not None
        value = parameters[parameter.name]
        if isinstance(parameter, click.Argument) or value is None or value is False:
            continue
        for one in value if parameter.multiple else [value]:
            arguments += [parameter.opts[-1]] if one is True else [parameter.opts[-1], str(one)]
    return [*arguments, "--", parameters["mountpoint"]]
