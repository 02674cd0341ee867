"""`backyfs rm`: remove versions."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import optional_versions_argument
from backyfs.cli.failures import raise_all
from backyfs.cli.hooked import hooked
from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import print_rows
from backyfs.cli.remedies import render_error
from backyfs.cli.text import printable
from backyfs.engine.versions.remove import RemovalReport, RemovalRequest, remove
from backyfs.errors import BackyfsError, UsageError
from backyfs.reports.rm import as_rows

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation
    from backyfs.engine.versions.remove import Removal

_log = logging.getLogger("backyfs.cli")


@click.command()
@optional_versions_argument
@click.option(
    "-f",
    "--force",
    is_flag=True,
    help="Also remove versions younger than disallow_rm_when_younger_than_days and, if named, the last valid version "
    "of a name.",
)
@click.option("--expired", is_flag=True, help="Remove all versions whose date of expiry has passed.")
@click.option("--even-last", is_flag=True, help="With --expired: also remove the last valid version of a name.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be removed or kept, and remove nothing.")
@click.pass_obj
@hooked("rm", "versions", "dry_run")
def command(
    invocation: Invocation, versions: tuple[str, ...], *, force: bool, expired: bool, even_last: bool, dry_run: bool
) -> None:
    """Remove each VERSION.

    Versions that are protected or in use by a running command are kept, even with --force. So is the last valid version
    of a name, unless it is named and --force is given. With --expired, --force is not enough for that: it takes
    --even-last. Every other version is removed. The exit status is 4 if any version was kept, except with --expired,
    which only warns. If a VERSION does not exist, nothing is removed. The space in the storage is freed by the next
    cleanup.
    """
    if bool(versions) == expired:
        raise UsageError("name the versions to remove, or give --expired")
    if even_last and not expired:
        raise UsageError("--even-last is for --expired; to remove a named last version, use --force")
    request = RemovalRequest(names=versions, force=force, even_last=even_last, dry_run=dry_run)
    removals: list[Removal] = []
    try:
        with invocation.open_repository() as repository, invocation.control(is_quiet=True) as control:
            report = remove(
                repository, request, now=datetime.now(UTC), control=control, announce=removals.append
            )
            invocation.record(repository, as_rows(report, render_error), report.errors)
    except (BackyfsError, KeyboardInterrupt):
        if removals:
            _print(invocation, RemovalReport(request=request, removals=tuple(removals)))
        raise
    _print(invocation, report)
    if expired:
        for reason in report.kept:
            _log.warning("kept: %s", reason)
    raise_all(report.errors)


def _print(invocation: Invocation, report: RemovalReport) -> None:
    if invocation.form is OutputForm.JSON:
        print_rows(invocation, as_rows(report, render_error), ())
    elif invocation.form is OutputForm.TABLE:
        done = "would be removed" if report.request.dry_run else "removed"
        for removal in report.removals:
            if removal.kept is None:
                click.echo(f"version {removal.version.uid} of {printable(removal.version.name)} {done}")
