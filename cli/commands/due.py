"""`backyfs due`: list the backups that are due."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.output import chosen_columns, fields_option, print_rows
from backyfs.cli.schedules import FOUND_BY_CHECK, schedulers_option
from backyfs.cli.stdout import run_for_output
from backyfs.cli.text import stored_text
from backyfs.engine.versions.schedules import due_backups
from backyfs.reports.due import COLUMNS, as_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.cli.invocation import Invocation


@click.command()
@click.argument("name", callback=stored_text, required=False)
@schedulers_option
@fields_option
@click.option("--check", is_flag=True, help="End with status 2 if a backup is due.")
@click.pass_obj
@run_for_output
def command(
    invocation: Invocation, name: str | None, schedulers: Sequence[str] | None, fields: str | None, *, check: bool
) -> int:
    """List the backups that are due, of all names or of NAME, the longest due first.

    A scheduler asks for a backup when the last valid version that carries its name as a tag is older than `interval`
    minus `sla`. A name with no backup has been due since 1970. `expire_date` is for --expire of the backup to be made.
    An empty NAME means all names.
    """
    columns = chosen_columns(fields, COLUMNS)
    with invocation.open_repository() as repository:
        found = due_backups(repository, schedulers, name=name or None)
    print_rows(invocation, as_rows(found), columns)
    return FOUND_BY_CHECK if check and found else 0
