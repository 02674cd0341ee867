"""`backyfs backup`: back up an image or block device as a new version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.commands.ls import version_row
from backyfs.cli.invocation import OutputForm, stop_on_signals
from backyfs.cli.output import print_object
from backyfs.cli.sizes import human_size
from backyfs.cli.text import printable, stored_text
from backyfs.engine.backup import BackupReport, BackupRequest, backup
from backyfs.sources import open_source

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation
    from backyfs.model import Version


@click.command()
@click.argument("source")
@click.argument("name", callback=stored_text)
@click.option(
    "-s",
    "--snapshot-name",
    callback=stored_text,
    default="",
    metavar="TEXT",
    help="Name of the snapshot that is backed up.",
)
@click.pass_obj
def command(invocation: Invocation, source: str, name: str, snapshot_name: str) -> None:
    """Back up SOURCE as a new version of NAME.

    SOURCE is a path, file://PATH or a block device. It should not change while it is read: take a snapshot
    of a disk that is in use. With -m the uid of the version is printed as soon as it is known, and at the
    end.
    """

    def announce(version: Version) -> None:
        if invocation.form is OutputForm.PIPE:
            click.echo(version.uid)

    with invocation.open_repository() as repository, stop_on_signals() as stop:
        image = open_source(source)
        try:
            report = backup(
                repository,
                image,
                BackupRequest(name=name, snapshot_name=snapshot_name),
                progress=invocation.progress(),
                stop=stop,
                announce=announce,
            )
        finally:
            image.close()
    _print(invocation, report, repository.block_size)


def _print(invocation: Invocation, report: BackupReport, block_size: int) -> None:
    counts = report.statistics
    if invocation.form is OutputForm.PIPE:
        click.echo(report.version.uid)
    elif invocation.form is OutputForm.JSON:
        fields = {name: getattr(counts, name) for name in type(counts).__slots__}
        print_object(
            {**version_row(report.version, block_size), **fields, "duration_s": round(report.duration_s, 3)}
        )
    else:
        rate = int(report.version.size_bytes / max(report.duration_s, 0.001))
        click.echo(
            f"version {report.version.uid} of {printable(report.version.name)}: "
            f"{human_size(report.version.size_bytes)} in {report.duration_s:.1f} s ({human_size(rate)}/s)"
        )
        click.echo(
            f"new {human_size(counts.bytes_written)} (stored as {human_size(counts.bytes_stored)}), "
            f"known {human_size(counts.bytes_deduplicated)}, zeros {human_size(counts.bytes_sparse)}"
        )
