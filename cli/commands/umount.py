"""`backyfs umount`: unmount what `mount` has mounted."""

from __future__ import annotations

import click

from backyfs.mount.mountpoints import unmount


@click.command()
@click.argument("mountpoint")
def command(mountpoint: str) -> None:
    """Unmount MOUNTPOINT, and wait until its process has ended.

    A mount whose process was killed is cleared as well.
    """
    unmount(mountpoint)
