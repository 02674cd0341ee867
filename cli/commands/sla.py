"""`backyfs sla`: list where backups break their schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.output import chosen_columns, fields_option, print_rows
from backyfs.cli.schedules import FOUND_BY_CHECK, schedulers_option
from backyfs.cli.stdout import run_for_output
from backyfs.cli.text import stored_text
from backyfs.engine.versions.schedules import breaches
from backyfs.reports.sla import COLUMNS, as_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.cli.invocation import Invocation


@click.command()
@click.argument("name", callback=stored_text, required=False)
@schedulers_option
@fields_option
@click.option("--check", is_flag=True, help="End with status 2 if there is a breach.")
@click.pass_obj
@run_for_output
def command(
    invocation: Invocation, name: str | None, schedulers: Sequence[str] | None, fields: str | None, *, check: bool
) -> int:
    """List backups that break their schedule, of all names or of NAME.

    A breach is any of these: fewer than `keep` valid versions with the scheduler's tag, or more than two above it; no
    version within `interval` plus `sla`; two versions closer together or farther apart than `interval` minus or plus
    `sla`; a version older than `keep` intervals allow. A version that also has the tag of another scheduler, and is
    kept for that, is neither too old nor one too many. An empty NAME means all names.
    """
    columns = chosen_columns(fields, COLUMNS)
    with invocation.open_repository() as repository:
        found = breaches(repository, schedulers, name=name or None)
    print_rows(invocation, as_rows(found), columns)
    return FOUND_BY_CHECK if check and found else 0
