"""`backyfs sla`: list where backups breach their schedule."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from backyfs.cli.commands.due import SOMETHING_IS_WRONG
from backyfs.cli.output import Row, chosen_columns, fields_option, print_rows
from backyfs.cli.schedules import chosen_schedulers, schedulers_option
from backyfs.cli.stdout import run_for_output
from backyfs.cli.text import stored_text
from backyfs.metadata.records.versions import list_versions
from backyfs.retention import find_breaches

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation

_COLUMNS = ("name", "breach")


@click.command()
@click.argument("name", callback=stored_text, required=False)
@schedulers_option
@fields_option
@click.option("--check", is_flag=True, help="End with status 2 if there is a breach.")
@click.pass_obj
@run_for_output
def command(
    invocation: Invocation, name: str | None, schedulers: str | None, fields: str | None, *, check: bool
) -> int:
    """List where the backups of all names, or of NAME, are not as their schedulers promise.

    That is: fewer than `keep` valid versions with the scheduler's tag, or more than two above it; none within
    `interval` and `sla`; two of them nearer or farther apart than `interval` give or take `sla`; one that is older than
    `keep` intervals allow. A version that has the tag of another scheduler as well, and is kept for that, is not too
    old or one too many. An empty NAME is as good as none.
    """
    columns = chosen_columns(fields, _COLUMNS)
    with invocation.open_repository() as repository:
        wanted = chosen_schedulers(repository.config, schedulers)
        with repository.database.read() as connection:
            versions = list_versions(connection, name=name or None)
        configured = repository.config.schedulers
    now = datetime.now(UTC)
    found = find_breaches(versions, wanted, now, others=configured, names=[name] if name else [])
    rows: list[Row] = [
        {"name": breach.name, "breach": breach.sentence, "scheduler": breach.scheduler} for breach in found
    ]
    print_rows(invocation, rows, columns)
    return SOMETHING_IS_WRONG if check and found else 0
