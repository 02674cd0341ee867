"""`backyfs umount`: unmount what `mount` has mounted."""

from __future__ import annotations

import click

from backyfs.host.mountpoints import unmount


@click.command()
@click.argument("mountpoint")
def command(mountpoint: str) -> None:
    """Unmount MOUNTPOINT and what stands on it, and wait until its process has ended.

    What stands on it are file systems on loop devices on its images; root takes them away, from the top down. What
    is in use stays, and who uses it is told. A mount whose process was killed is cleared as well.
    """
    unmount(mountpoint)
