"""`backyfs detach`: undo what `attach` has done."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from backyfs.attach.detachment import Detachment, detach
from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import print_rows
from backyfs.cli.text import printable
from backyfs.errors import MountError, UsageError
from backyfs.host.records import list_attachments

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation
    from backyfs.cli.output import Row

_COLUMNS = ("directory", "unmounted", "devices", "left")


@click.command()
@click.argument("directory", required=False, type=click.Path())
@click.option("--all", "everything", is_flag=True, help="Detach everything that is attached.")
@click.pass_obj
def command(invocation: Invocation, directory: str | None, *, everything: bool) -> None:
    """Unmount all that stands in DIRECTORY of `attach`, and take away what was made for it. For root.

    DIRECTORY may be left out where only one version is attached. It works after a crash as well, and can be run
    again when something was in use.
    """
    invocation.begin_log()
    if os.geteuid() != 0:
        raise MountError("only root can detach what root has attached; run it as root")
    if directory is not None and everything:
        raise UsageError("--all detaches every directory; give it, or DIRECTORY")
    detachments = []
    problems = []
    for each in [directory] if directory is not None else _chosen(everything=everything):
        try:
            detachments.append(detach(each))
        except MountError as error:
            problems.append(error)
    _print(invocation, detachments)
    if problems:
        raise MountError("; ".join(map(str, problems)))


def _chosen(*, everything: bool) -> list[str]:
    attached = list_attachments()
    if not attached:
        raise MountError("nothing is attached; name the directory if it was attached in another mount namespace")
    if len(attached) > 1 and not everything:
        raise UsageError(f"several versions are attached: {', '.join(attached)}; name a directory, or give --all")
    return attached


def _print(invocation: Invocation, detachments: list[Detachment]) -> None:
    if invocation.form is not OutputForm.TABLE:
        rows: list[Row] = [
            {
                "directory": each.directory,
                "unmounted": tuple(each.unmounted),
                "devices": tuple(each.devices),
                "left": tuple(each.left),
            }
            for each in detachments
        ]
        print_rows(invocation, rows, _COLUMNS)
        return
    for each in detachments:
        click.echo(f"{printable(each.directory)} is detached")
        for path in each.left:
            click.echo(f"{printable(path)} stays: there is more in it than `attach` has made")
