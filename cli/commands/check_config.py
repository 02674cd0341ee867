"""`backyfs check-config`: check that everything a repository needs is there and works."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import print_rows
from backyfs.cli.remedies import render_remedy
from backyfs.cli.text import printable
from backyfs.reports.check_config import COLUMNS, as_rows

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation
    from backyfs.engine.setup.findings import Finding


@click.command()
@click.pass_obj
def command(invocation: Invocation) -> int:
    """Check configuration, key, encryption, database, storage, free space, clock and FUSE.

    Prints a line for each: ok, warning, failed or skipped, and what to do. All of them are checked; the exit status is
    that of the first that failed. Nothing is changed: a test object is stored and deleted again, and an older database
    is not upgraded.
    """
    from backyfs.engine.setup.check import check_configuration  # noqa: PLC0415 - SQLAlchemy is slow to load

    report = check_configuration(invocation.config_file, os.environ, now=datetime.now(UTC))
    rows = as_rows(report.findings, lambda finding: printable(_message(finding)))
    if invocation.form is OutputForm.TABLE:
        for row in rows:
            click.echo(f"{row['grade']:<8}  {row['check']:<13}  {row['message']}")
    else:
        print_rows(invocation, rows, COLUMNS)
    return report.exit_status


def _message(finding: Finding) -> str:
    return finding.message if finding.remedy is None else f"{finding.message}; {render_remedy(finding.remedy)}"
