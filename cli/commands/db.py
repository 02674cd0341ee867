"""`backyfs db`: what concerns the database as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import print_object
from backyfs.cli.text import printable

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation


@click.group("db")
def command() -> None:
    """Work on the database as a whole."""


@command.command()
@click.argument("from_url")
@click.argument("to_url")
@click.pass_obj
def copy(invocation: Invocation, from_url: str, to_url: str) -> None:
    """Copy all metadata from the database FROM_URL to TO_URL, which is empty, on any engine.

    Afterwards name TO_URL as `engine` in the configuration. Commands that are running have to end first.
    """
    from backyfs.engine.transfer.database_copy import copy_database  # noqa: PLC0415 - SQLAlchemy is slow to load

    report = copy_database(from_url, to_url)
    if invocation.form is OutputForm.JSON:
        print_object({"from": report.source, "to": report.target, **report.rows})
    elif invocation.form is OutputForm.PIPE:
        for table, rows in report.rows.items():
            click.echo(f"{table}|{rows}")
    else:
        rows = sum(report.rows.values())
        click.echo(f"{rows} rows of {len(report.rows)} tables were copied to {printable(report.target)}, and compared.")
        click.echo("Write its URL as `engine` in [MetaBackend] now; the old database stays as it is.")
