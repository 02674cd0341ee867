"""`backyfs import`: store versions that were exported."""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import print_object
from backyfs.cli.text import printable
from backyfs.errors import UsageError
from backyfs.reports.import_ import as_object

if TYPE_CHECKING:
    from typing import BinaryIO

    from backyfs.cli.invocation import Invocation

_log = logging.getLogger("backyfs.cli")


@click.command("import")
@click.argument("file")
@click.pass_obj
def command(invocation: Invocation, file: str) -> None:
    """Store the versions of an export. FILE was written by backyfs or by any backy2 2.x; - is standard input.

    The blocks of these versions have to be in the storage. If FILE is truncated, or has a version that already exists,
    nothing of it is stored.
    """
    from backyfs.engine.transfer.importing import import_export  # noqa: PLC0415 - SQLAlchemy is slow to load

    with ExitStack() as opened:
        source = sys.stdin.buffer if file == "-" else opened.enter_context(_open(file))
        report = import_export(opened.enter_context(invocation.open_repository()), source)
    if report.unverifiable:
        _log.warning("%d blobs lost their fingerprint, which is of another hash function", report.unverifiable)
    if invocation.form is OutputForm.JSON:
        print_object(as_object(report))
        return
    for version in report.versions:
        if invocation.form is OutputForm.PIPE:
            click.echo(version.uid)
        else:
            click.echo(f"version {version.uid} of {printable(version.name)}")


def _open(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; name a file that `export` wrote") from error
