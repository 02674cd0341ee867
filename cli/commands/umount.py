"""`backyfs umount`: unmount what `mount` mounted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.host.mountpoints import unmount

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation


@click.command()
@click.argument("mountpoint")
@click.pass_obj
def command(invocation: Invocation, mountpoint: str) -> None:
    """Unmount MOUNTPOINT and everything mounted from it, and wait until its process has ended.

    That includes file systems on loop devices on its images, which only root can unmount. Anything in use stays
    mounted; the processes using it are listed. A mount whose process was killed is cleaned up as well.
    """
    invocation.begin_log()
    unmount(mountpoint)
