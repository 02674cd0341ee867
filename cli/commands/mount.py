"""`backyfs mount`: mount all versions as a read-only file system.

In the background the program starts itself once more, in the foreground, and waits until that one says that
the mount is ready: a process that is to serve FUSE has threads and cannot fork.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import click

from backyfs.cli.background import detach
from backyfs.cli.sizes import Size

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation

_log = logging.getLogger("backyfs.cli")
_READY = b"ready"
_CACHE_SIZE = "256M"  # as mount.session.DEFAULT_CACHE_BYTES, which --help does not load
_READ_AHEAD = "32M"   # as mount.session.DEFAULT_READ_AHEAD_BYTES


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
@click.option("--ready-fd", type=int, hidden=True, help="Tell this descriptor when ready, then detach.")
@click.pass_obj
def command(
    invocation: Invocation,
    mountpoint: str,
    options: tuple[str, ...],
    *,
    foreground: bool,
    cache_size: int,
    read_ahead: int,
    workers: int | None,
    ready_fd: int | None,
) -> int:
    """Mount all versions below MOUNTPOINT, read-only.

    Returns when the mount can be used, and goes on in the background. Each version is a file
    by_version_uid/UID/data, also reached through by_name/NAME/; loop-mount it to get at the files in it.
    """
    mountpoint = os.path.abspath(mountpoint)
    if not foreground:
        tuning = [f"--cache-size={cache_size}", f"--read-ahead={read_ahead}"]
        tuning += [] if workers is None else [f"--workers={workers}"]
        return _start_in_background(invocation, mountpoint, options, tuning)
    if ready_fd is not None:
        os.set_inheritable(ready_fd, False)  # the helper of auto_unmount would keep it open: no end to wait for
    from backyfs.mount.session import MountRequest, serve  # noqa: PLC0415 - the waiting process needs no pyfuse3

    def ready() -> None:
        if ready_fd is None:
            _log.info("%s is mounted; Ctrl-C unmounts it", mountpoint)
            return
        detach()
        os.write(ready_fd, _READY)
        os.close(ready_fd)

    words = tuple(word for option in options for word in option.split(",") if word)
    with invocation.open_repository() as repository:
        request = MountRequest(
            mountpoint=mountpoint,
            options=words,
            cache_bytes=cache_size,
            workers=workers,
            read_ahead_bytes=read_ahead,
        )
        serve(repository, request, ready)
    return 0


def _start_in_background(
    invocation: Invocation, mountpoint: str, options: tuple[str, ...], tuning: list[str]
) -> int:
    reader, writer = os.pipe()
    # -P: without it Python would look for modules in the current directory first, whoever owns that.
    arguments = [sys.executable, "-P", "-m", "backyfs.cli", *invocation.as_arguments(), "mount", "--foreground"]
    arguments += ["--ready-fd", str(writer), *tuning, *(f"-o{option}" for option in options), "--", mountpoint]
    child = subprocess.Popen(arguments, pass_fds=[writer])
    os.close(writer)
    with open(reader, "rb") as answer:
        if answer.read() == _READY:
            return 0
    return child.wait()  # it has told on stderr what is wrong
