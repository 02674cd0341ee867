"""`backyfs import`: store versions that were exported."""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from backyfs import keys
from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import print_object
from backyfs.cli.text import printable
from backyfs.errors import UsageError

if TYPE_CHECKING:
    from typing import BinaryIO

    from backyfs.cli.invocation import Invocation

_log = logging.getLogger("backyfs.cli")


@click.command("import")
@click.argument("file")
@click.pass_obj
def command(invocation: Invocation, file: str) -> None:
    """Store the versions of an export; FILE is one of backyfs or of any backy2 2.x, - is standard input.

    The blocks that they name have to be in the storage. A file that is cut short or names a version that is there
    already is refused whole.
    """
    with ExitStack() as opened:
        source = sys.stdin.buffer if file == "-" else opened.enter_context(_open(file))
        repository = opened.enter_context(invocation.open_repository())
        from backyfs.engine.transfer.importing import import_versions  # noqa: PLC0415 - slow to load

        key_source = invocation.load_config().key
        configured_key = None if key_source is None else keys.read_key(key_source)
        report = import_versions(repository, source, configured_key=configured_key)
    if report.unverifiable:
        _log.warning("%d blobs lost their fingerprint, which is of another hash function", report.unverifiable)
    if invocation.form is OutputForm.JSON:
        print_object({"versions": [version.uid for version in report.versions]})
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
