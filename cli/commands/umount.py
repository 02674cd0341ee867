"""`backyfs umount`: unmount what `mount` has mounted."""

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
    """Unmount MOUNTPOINT and what stands on it, and wait until its process has ended.

    What stands on it are file systems on loop devices on its images; root takes them away, from the top down. What
    is in use stays, and who uses it is told. A mount whose process was killed is cleared as well.
    """
    invocation.begin_log()
    unmount(mountpoint)
