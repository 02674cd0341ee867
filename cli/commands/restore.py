"""`backyfs restore`: write a version to a file or block device."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import version_argument
from backyfs.cli.hooks import hooked
from backyfs.cli.invocation import OutputForm, stop_on_signals
from backyfs.cli.output import print_object
from backyfs.cli.sizes import human_size
from backyfs.cli.text import printable
from backyfs.engine.restore import RestoreReport, restore
from backyfs.errors import IntegrityError
from backyfs.metadata.versions import find_version

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation

_log = logging.getLogger("backyfs.cli")


@click.command()
@version_argument
@click.argument("target")
@click.option("-f", "--force", is_flag=True, help="Overwrite TARGET if it exists.")
@click.pass_obj
@hooked("restore", "version", "target")
def command(invocation: Invocation, version: str, target: str, *, force: bool) -> None:
    """Write VERSION to TARGET, a file or block device.

    Blocks are checked before they are written. Damaged ones are named with their ranges, everything else is
    restored, and the exit status is 20. Files are made sparse.
    """
    with invocation.open_repository() as repository, stop_on_signals() as stop:
        with repository.database.read() as connection:
            wanted = find_version(connection, version)
        invocation.add_facts(uid=wanted.uid)
        report = restore(
            repository, wanted, target, replace=force, progress=invocation.progress(), stop=stop
        )
    _print(invocation, report)
    if report.damaged:
        missing = sum(damage.stop - damage.start for damage in report.damaged)
        raise IntegrityError(
            f"{missing} bytes of version {wanted.uid} could not be restored; the ranges are listed above, "
            f"everything else is in {report.target}"
        )


def _print(invocation: Invocation, report: RestoreReport) -> None:
    for damage in report.damaged:
        _log.error("bytes %d to %d not restored: %s", damage.start, damage.stop, damage.reason)
    if invocation.form is OutputForm.JSON:
        print_object(
            {
                "uid": report.version.uid,
                "target": report.target,
                "size_bytes": report.version.size_bytes,
                "bytes_written": report.bytes_written,
                "damaged": [f"{damage.start}-{damage.stop}" for damage in report.damaged],
                "duration_s": round(report.duration_s, 3),
            }
        )
    elif invocation.form is OutputForm.TABLE:
        rate = int(report.version.size_bytes / max(report.duration_s, 0.001))
        click.echo(
            f"version {report.version.uid} restored to {printable(report.target)}: "
            f"{human_size(report.version.size_bytes)} in {report.duration_s:.1f} s ({human_size(rate)}/s)"
        )
