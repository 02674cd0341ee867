"""`backyfs check-config`: look whether everything a repository needs is there and works."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import Row, print_rows
from backyfs.cli.remedies import render
from backyfs.cli.text import printable

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation
    from backyfs.engine.setup.findings import Finding

_COLUMNS = ("check", "grade", "message")


@click.command()
@click.pass_obj
def command(invocation: Invocation) -> int:
    """Check configuration, key, encryption, database, storage, free space, clock and FUSE.

    A line for each: ok, warning, failed or skipped, and what to do. All of them are looked at; the exit status
    is that of the first that failed. Nothing is changed: a test object is stored and deleted again, and an
    older database is not upgraded.
    """
    from backyfs.engine.setup.check import check_configuration  # noqa: PLC0415 - SQLAlchemy is slow to load

    report = check_configuration(invocation.config_file, os.environ, now=datetime.now(UTC))
    if invocation.form is OutputForm.TABLE:
        for finding in report.findings:
            click.echo(f"{finding.grade.value:<8}  {finding.check:<13}  {printable(str(render(finding.message)))}")
    else:
        print_rows(invocation, [_row(finding) for finding in report.findings], _COLUMNS)
    return report.exit_status


def _row(finding: Finding) -> Row:
    return {
        "check": finding.check,
        "grade": finding.grade.value,
        "message": printable(str(render(finding.message))),
        "exit_status": finding.exit_status,
    }
