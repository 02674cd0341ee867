"""`backyfs attach`: mount every file system of a version."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import click

from backyfs.attach.attachment import Attachment, AttachRequest, attach
from backyfs.attach.parts import Outcome
from backyfs.cli import background
from backyfs.cli.arguments import version_argument
from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import print_rows
from backyfs.cli.remedies import render
from backyfs.cli.serving import serve_mount
from backyfs.cli.text import printable
from backyfs.engine.versions.named import named_version
from backyfs.errors import MountError
from backyfs.model import VersionStatus
from backyfs.reports.attach import COLUMNS, PIPE_COLUMNS, as_rows
from backyfs.text import shell_word

if TYPE_CHECKING:
    from backyfs.attach.parts import Part
    from backyfs.cli.invocation import Invocation
    from backyfs.mount.session import MountRequest
    from backyfs.repository import Repository

_log = logging.getLogger("backyfs.cli")
_SCRATCH_DIRECTORY = "/var/tmp"  # noqa: S108 - files without a name; not /tmp or /run, which may be in memory


@click.command()
@version_argument
@click.argument("directory", required=False, type=click.Path())
@click.option("--no-replay", is_flag=True, help="Show the bare image: do not replay journals.")
@click.pass_obj
def command(invocation: Invocation, version: str, directory: str | None, *, no_replay: bool) -> int:
    """Mount every file system of VERSION below DIRECTORY, read-only. For root.

    DIRECTORY is created if it does not exist; by default it is /run/backyfs/NAME_DATE. Each partition is mounted on
    DIRECTORY/NUMBER, a file system on the whole image on DIRECTORY/data, and DIRECTORY/devices has links to the loop
    devices. A file system that was in use is shown as it would be after a boot: its journal is replayed into a
    temporary file, which is discarded later; the version does not change. For encrypted volumes and LVM, it prints the
    commands to continue with. `backyfs detach` undoes all of it.
    """
    invocation.load_config()
    import backyfs.repository  # noqa: F401, PLC0415 - before the fork: both processes need it

    forked = background.start()
    if isinstance(forked, background.Starter):
        with forked:
            _serve(invocation, forked)
        return 0  # only for type checkers: the process has ended
    with forked:
        attachment = _attach(invocation, version, directory, forked, replay=not no_replay)
    _print(invocation, attachment)
    _check(attachment)
    return 0


def _attach(
    invocation: Invocation, text: str, directory: str | None, child: background.Child, *, replay: bool
) -> Attachment:
    with invocation.open_repository() as repository:
        version = named_version(repository, text)
        own_paths, repository_uid = repository.own_paths, repository.uid
    if version.status is not VersionStatus.VALID:
        _log.warning("version %s is %s: not everything in it can be read", version.uid, version.status.value)
    scratch = os.environ.get("TMPDIR", _SCRATCH_DIRECTORY)

    def start_mount(mountpoint: str) -> None:
        child.order(
            uid=version.uid, mountpoint=mountpoint, scratch=scratch if replay else None, answered=invocation.answered
        )
        if child.wait_until_ready():
            raise MountError(f"version {version.uid} cannot be mounted; the reason is above")

    return attach(
        AttachRequest(
            version=version,
            repository_uid=repository_uid,
            own_paths=own_paths,
            start_mount=start_mount,
            directory=directory,
            scratch=scratch if replay else None,
        )
    )


def _serve(invocation: Invocation, starter: background.Starter) -> None:
    """Mount the version that the starter names, if it needs a mount."""
    from backyfs.mount.selection import Selection  # noqa: PLC0415
    from backyfs.mount.session import MountRequest  # noqa: PLC0415
    from backyfs.mount.settings import Settings  # noqa: PLC0415 - while the starter looks for the version

    order = starter.receive()
    if order is None:
        return
    if invocation.log_option is None:
        background.log_errors_only()  # the message that it is mounted is of no interest
    invocation.answered[:] = order["answered"]

    def request_of(_repository: Repository) -> MountRequest:
        settings = Settings(selection=Selection(uids=frozenset({order["uid"]})))
        return MountRequest(mountpoint=order["mountpoint"], settings=settings, scratch=order["scratch"])

    serve_mount(invocation, order["mountpoint"], request_of, starter)


def _check(attachment: Attachment) -> None:
    """Make sure that at least one file system is visible, and that none of them is older than it should be.

    Raises:
        MountError: none is visible, or the journal of one was not replayed.
    """
    undo = f"`backyfs detach {shell_word(attachment.directory)}`"
    outcomes = {part.outcome for part in attachment.parts}
    if outcomes.isdisjoint({Outcome.MOUNTED, Outcome.READY, Outcome.BARE}):
        raise MountError(
            f"no file system of version {attachment.version_uid} could be mounted; the reasons are listed above, and "
            f"{undo} removes the loop devices"
        )
    bare = [_called(part) for part in attachment.parts if part.outcome is Outcome.BARE]
    if bare:
        raise MountError(
            f"the journal of {', '.join(bare)} could not be replayed: the newest files may be missing; the reason and "
            f"the commands to continue with are listed above, and {undo} unmounts everything"
        )


def _print(invocation: Invocation, attachment: Attachment) -> None:
    rows = as_rows(attachment, render)
    if invocation.form is not OutputForm.TABLE:
        print_rows(invocation, rows, PIPE_COLUMNS)
        return
    click.echo(f"version {attachment.version_uid} is attached in {printable(attachment.directory)}")
    print_rows(invocation, rows, COLUMNS)
    for part in attachment.parts:
        if part.remark:  # too long for a column
            click.echo(f"{_called(part).capitalize()}: {printable(part.remark)}.")
    for part in attachment.parts:
        if part.commands:
            click.echo(f"To continue with {_called(part)}:")
            for line in part.commands:
                click.echo(f"    {printable(str(render(line)))}")
    click.echo(f"The whole image is {printable(attachment.image)}.")
    click.echo(f"`backyfs detach {shell_word(attachment.directory)}` undoes this.")


def _called(part: Part) -> str:
    return f"partition {part.name}" if part.name.isdecimal() else "the image"
