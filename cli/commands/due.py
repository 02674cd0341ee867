"""`backyfs due`: list the backups that are due."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from backyfs.cli.output import Row, chosen_columns, fields_option, print_rows
from backyfs.cli.schedules import chosen_schedulers, schedulers_option
from backyfs.cli.stdout import run_for_output
from backyfs.cli.text import stored_text
from backyfs.metadata.records.versions import list_versions
from backyfs.retention import find_due

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation

_COLUMNS = ("name", "schedulers", "expire_date", "due_since")
SOMETHING_IS_WRONG = 2  # the status of a --check that finds something


@click.command()
@click.argument("name", callback=stored_text, required=False)
@schedulers_option
@fields_option
@click.option("--check", is_flag=True, help="End with status 2 if a backup is due.")
@click.pass_obj
@run_for_output
def command(
    invocation: Invocation, name: str | None, schedulers: str | None, fields: str | None, *, check: bool
) -> int:
    """List the backups that are due, of all names or of NAME, the longest due first.

    A scheduler asks for a backup when the last valid version that carries its name as a tag is older than `interval`
    less `sla`. A NAME without any version is due since 1970. `expire_date` is for --expire of the backup to be made.
    An empty NAME is as good as none.
    """
    columns = chosen_columns(fields, _COLUMNS)
    with invocation.open_repository() as repository:
        wanted = chosen_schedulers(repository.config, schedulers)
        with repository.database.read() as connection:
            versions = list_versions(connection, name=name or None)
    found = find_due(versions, wanted, datetime.now(UTC), names=[name] if name else [])
    rows: list[Row] = [
        {
            "name": due.name,
            "schedulers": due.schedulers,
            "expire_date": due.expire_at,
            "due_since": due.due_since,
        }
        for due in found
    ]
    print_rows(invocation, rows, columns)
    return SOMETHING_IS_WRONG if check and found else 0
