"""Show what a command changed about versions."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import click

from backyfs.cli.failures import raise_all
from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import print_object, print_rows
from backyfs.cli.text import printable
from backyfs.engine.versions.edit import protect
from backyfs.reports.protection import as_rows
from backyfs.reports.versions import CHANGED_COLUMNS, version_row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.cli.invocation import Invocation
    from backyfs.engine.versions.edit import EditReport

_log = logging.getLogger("backyfs.cli")


def change_protection(invocation: Invocation, names: Sequence[str], *, protected: bool) -> None:
    """Protect versions or end their protection, and print what was changed.

    Raises:
        VersionNotFoundError: one does not exist; nothing was changed.
        VersionError: one needed no change; the others were changed.
    """
    with invocation.open_repository() as repository:
        report = protect(repository, names, protected=protected)
    if invocation.form is OutputForm.JSON:
        print_rows(invocation, as_rows(report), ())
    elif invocation.form is OutputForm.TABLE:
        word = "protected" if protected else "unprotected"
        for version in report.changed:
            click.echo(f"version {version.uid} of {printable(version.name)} is {word}")
    raise_all(report.errors)


def print_version(invocation: Invocation, report: EditReport, *, no_effect: str = "") -> None:
    """Print a version that a command has changed; nothing where backy2 prints nothing.

    `no_effect` says in a warning for each tag why nothing changed, as in "version U already has tag T".
    """
    for tag in report.without_effect:
        _log.warning("version %s %s tag %s", report.version.uid, no_effect, tag)
    row = version_row(report.version, report.block_size)
    if invocation.form is OutputForm.JSON:
        print_object(row)
    elif invocation.form is OutputForm.TABLE:
        print_rows(invocation, [row], CHANGED_COLUMNS)
