"""`backyfs detach`: undo `attach`."""

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
from backyfs.reports.detach import COLUMNS, as_rows

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation


@click.command()
@click.argument("directory", required=False, type=click.Path())
@click.option("--all", "everything", is_flag=True, help="Detach everything that is attached.")
@click.pass_obj
def command(invocation: Invocation, directory: str | None, *, everything: bool) -> None:
    """Unmount everything in the DIRECTORY of `attach`, and remove what was created for it. For root.

    DIRECTORY can be left out if only one version is attached. This also works after a crash, and can be run again if
    something was in use.
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
        print_rows(invocation, as_rows(detachments), COLUMNS)
        return
    for each in detachments:
        click.echo(f"{printable(each.directory)} is detached")
        for path in each.left:
            click.echo(f"{printable(path)} was kept: it contains more than `attach` put there")
