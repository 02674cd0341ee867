"""`backyfs mount`: mount all versions as a read-only file system.

In the background, a child process serves the mount. It is forked before there are threads, and the command waits until
it is ready.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from backyfs.cli import background
from backyfs.cli.options import OptionalValue, real_path
from backyfs.cli.serving import serve_mount
from backyfs.cli.sizes import Size
from backyfs.cli.tags import ONE_TAG
from backyfs.errors import UsageError

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation
    from backyfs.mount.session import MountRequest
    from backyfs.mount.settings import Settings
    from backyfs.repository import Repository

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
    help="Memory for decrypted blocks.",
)
@click.option(
    "--read-ahead",
    type=Size(),
    default=_READ_AHEAD,
    show_default=True,
    metavar="SIZE",
    help="How far to load ahead of each sequential reader; 0 turns it off.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Threads that load blocks.  [default: processors + 1, more for a bucket]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1),
    default=_TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for storage or database before a read fails with an input/output error.",
)
@click.option(
    "--version",
    "versions",
    cls=OptionalValue,
    multiple=True,
    metavar="VERSION",
    help="Show only this version. Repeatable.",
)
@click.option(
    "--name",
    "names",
    cls=OptionalValue,
    multiple=True,
    metavar="NAME",
    help="Show only versions of this name or shell pattern. Repeatable.",
)
@click.option(
    "--tag",
    "tags",
    cls=OptionalValue,
    type=ONE_TAG,
    multiple=True,
    metavar="TAG",
    help="Show only versions with this tag. Repeatable.",
)
@click.option(
    "--writable",
    type=click.Path(),
    callback=real_path,
    metavar="DIRECTORY",
    help="Make images writable, and keep what is written to them in DIRECTORY.",
)
@click.option("--discard", is_flag=True, help="Discard what was written to images, at the start and at the end.")
@click.pass_obj
def command(
    invocation: Invocation,
    /,
    *,
    mountpoint: str,
    foreground: bool,
    options: tuple[str, ...],
    writable: str | None,
    discard: bool,
    versions: tuple[str, ...],
    **settings: Any,
) -> int:
    """Mount all versions below MOUNTPOINT, read-only.

    Returns when the mount can be used, and keeps running in the background. Each version is a file
    by_version_uid/UID/data, which is also below by_name/NAME/; loop-mount it to get at the files in it, or use
    `backyfs attach`.
    """
    # Before there are two processes, the second of which has another current directory.
    mountpoint = os.path.abspath(mountpoint)
    writable = None if writable is None else os.path.abspath(writable)
    if discard and writable is None:
        raise UsageError("--discard forgets what was written, which needs --writable DIRECTORY")
    starter = None
    if not foreground:
        invocation.load_config()  # its mistakes are reported before there are two processes
        forked = background.start()
        if isinstance(forked, background.Child):
            with forked:
                return forked.wait_until_ready()
        starter = forked

    def request_of(repository: Repository) -> MountRequest:
        from backyfs.mount.session import MountRequest  # noqa: PLC0415 - the waiting process needs no pyfuse3

        return MountRequest(
            mountpoint=mountpoint,
            options=tuple(word for option in options for word in option.split(",") if word),
            settings=_settings(repository, versions, **settings),
            writable=writable,
            discard=discard,
        )

    with nullcontext() if starter is None else starter:
        serve_mount(invocation, mountpoint, request_of, starter)
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
    from backyfs.engine.versions.named import named_versions  # noqa: PLC0415 - as above
    from backyfs.mount.selection import Selection  # noqa: PLC0415
    from backyfs.mount.settings import Settings  # noqa: PLC0415

    uids = frozenset(version.uid for version in named_versions(repository, versions))
    return Settings(
        cache_bytes=cache_size,
        read_ahead_bytes=read_ahead,
        workers=workers,
        patience_s=timeout,
        selection=Selection(uids=uids, names=names, tags=frozenset(tags)),
    )
