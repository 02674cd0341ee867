"""`backyfs attach`: mount every file system of a version, the shortest way to its files."""

from __future__ import annotations

import logging
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from backyfs.attach.attachment import Attachment, AttachRequest, Outcome, attach
from backyfs.cli.arguments import version_argument
from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import print_rows
from backyfs.cli.text import printable
from backyfs.errors import MountError
from backyfs.metadata.versions import find_version
from backyfs.model import VersionStatus

if TYPE_CHECKING:
    from backyfs.attach.attachment import Part
    from backyfs.cli.invocation import Invocation
    from backyfs.cli.output import Row

_log = logging.getLogger("backyfs.cli")
_COLUMNS = ("partition", "size_bytes", "type", "label", "state", "mountpoint", "device", "remark")
_PIPE_COLUMNS = ("directory", *_COLUMNS)


@click.command()
@version_argument
@click.argument("directory", required=False, type=click.Path())
@click.pass_context
def command(context: click.Context, version: str, directory: str | None) -> None:
    """Mount every file system of VERSION below DIRECTORY, read-only. For root.

    DIRECTORY is made if it is not there; by default it is /run/backyfs/NAME_DATE. Each partition is mounted on
    DIRECTORY/NUMBER, a file system on the whole image on DIRECTORY/data, and DIRECTORY/devices has links to the
    loop devices. A mount of the repository is used if there is one, else one is made. For what is encrypted or
    belongs to a volume group, the commands to go on are told. `backyfs detach` undoes all of it.
    """
    invocation: Invocation = context.obj
    with invocation.open_repository() as repository:
        with repository.database.read() as connection:
            wanted = find_version(connection, version)
        own_paths, repository_uid = repository.own_paths, repository.uid
    if wanted.status is not VersionStatus.VALID:
        _log.warning("version %s is %s: not everything in it can be read", wanted.uid, wanted.status.value)

    def start_mount(mountpoint: str) -> None:
        _start_mount(context, wanted.uid, mountpoint)

    attachment = attach(
        AttachRequest(
            version=wanted,
            repository_uid=repository_uid,
            own_paths=own_paths,
            start_mount=start_mount,
            directory=directory,
        )
    )
    _print(invocation, attachment)
    if all(part.outcome not in {Outcome.MOUNTED, Outcome.READY} for part in attachment.parts):
        raise MountError(
            f"no file system of version {wanted.uid} could be mounted; the reasons are listed above, and "
            f"`backyfs detach {shlex.quote(attachment.directory)}` takes the loop devices away"
        )


def _start_mount(context: click.Context, uid: str, mountpoint: str) -> None:
    from backyfs.cli.commands.mount import command as mount_command  # noqa: PLC0415 - rarely needed

    invocation: Invocation = context.obj
    quiet = replace(invocation, log_option=invocation.log_option or "--quiet")  # its place is no news to anybody
    words = ["--version", uid, "--", mountpoint]
    with mount_command.make_context("mount", words, parent=context, obj=quiet) as made:
        status = mount_command.invoke(made)
    if status:
        raise MountError(f"version {uid} cannot be mounted; the reason is told above")


def _print(invocation: Invocation, attachment: Attachment) -> None:
    rows = [_row(attachment, part) for part in attachment.parts]
    if invocation.form is not OutputForm.TABLE:
        print_rows(invocation, rows, _PIPE_COLUMNS)
        return
    click.echo(f"version {attachment.version_uid} is attached in {printable(attachment.directory)}")
    print_rows(invocation, rows, _COLUMNS)
    for part in attachment.parts:
        if part.commands:
            click.echo(f"To go on with {_called(part)}:")
            for line in part.commands:
                click.echo(f"    {printable(line)}")
    click.echo(f"The whole image is {printable(attachment.image)}.")
    click.echo(f"`backyfs detach {printable(shlex.quote(attachment.directory))}` undoes it.")


def _called(part: Part) -> str:
    return f"partition {part.name}" if part.name.isdecimal() else "the image"


def _row(attachment: Attachment, part: Part) -> Row:
    return {
        "directory": attachment.directory,
        "uid": attachment.version_uid,
        "image": attachment.image,
        "partition": part.name,
        "size_bytes": part.size_bytes,
        "type": part.content.kind,
        "label": part.content.label,
        "file_system_uid": part.content.uid,
        "state": part.outcome.value,
        "mountpoint": part.mountpoint,
        "options": part.options,
        "device": part.device,
        "remark": part.remark,
        "commands": part.commands,
    }
