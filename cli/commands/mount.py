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

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation

_log = logging.getLogger("backyfs.cli")
_READY = b"ready"


@click.command()
@click.argument("mountpoint")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground.")
@click.option("-o", "options", multiple=True, metavar="OPTION[,OPTION]", help="Mount options, such as allow_other.")
@click.option("--ready-fd", type=int, hidden=True, help="Tell this descriptor when ready, then detach.")
@click.pass_obj
def command(
    invocation: Invocation, mountpoint: str, options: tuple[str, ...], *, foreground: bool, ready_fd: int | None
) -> int:
    """Mount all versions below MOUNTPOINT, read-only.

    Returns when the mount can be used, and goes on in the background. Each version is a file
    by_version_uid/UID/data, also reached through by_name/NAME/; loop-mount it to get at the files in it.
    """
    mountpoint = os.path.abspath(mountpoint)
    if not foreground:
        return _start_in_background(invocation, mountpoint, options)
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
        serve(repository, MountRequest(mountpoint=mountpoint, options=words), ready)
    return 0


def _start_in_background(invocation: Invocation, mountpoint: str, options: tuple[str, ...]) -> int:
    reader, writer = os.pipe()
    # -P: without it Python would look for modules in the current directory first, whoever owns that.
    arguments = [sys.executable, "-P", "-m", "backyfs.cli", *invocation.as_arguments(), "mount", "--foreground"]
    arguments += ["--ready-fd", str(writer), *(f"-o{option}" for option in options), "--", mountpoint]
    child = subprocess.Popen(arguments, pass_fds=[writer])
    os.close(writer)
    with open(reader, "rb") as answer:
        if answer.read() == _READY:
            return 0
    return child.wait()  # it has told on stderr what is wrong
