"""`backyfs ls`: list the versions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from backyfs.cli.options import OptionalValue
from backyfs.cli.output import chosen_columns, fields_option, print_rows
from backyfs.cli.stdout import run_for_output
from backyfs.cli.tags import ONE_TAG
from backyfs.cli.text import stored_text
from backyfs.engine.versions.listing import VersionFilter, matching_versions
from backyfs.reports.versions import COLUMNS, ENCRYPTION, as_rows

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation


@click.command()
@click.argument("name", callback=stored_text, required=False)
@click.option("-s", "--snapshot-name", callback=stored_text, metavar="TEXT", help="Only versions of this snapshot.")
@click.option(
    "-t",
    "--tag",
    cls=OptionalValue,
    type=ONE_TAG,
    callback=stored_text,
    metavar="TAG",
    help="Only versions with this tag.",
)
@click.option("-e", "--expired", is_flag=True, help="Only versions whose date of expiry has passed.")
@fields_option
@click.pass_obj
@run_for_output
def command(
    invocation: Invocation,
    name: str | None,
    snapshot_name: str | None,
    tag: str | None,
    fields: str | None,
    *,
    expired: bool,
) -> None:
    """List all versions, or those of NAME.

    `size` is the number of blocks. Times are in UTC. JSON output also has `status`: incomplete, valid or invalid. An
    empty NAME, TEXT or TAG does not filter.

    A further field is `encryption_versions`: how many blocks have which encryption version, as 0:12,2:300.
    """
    columns = COLUMNS if fields is None else chosen_columns(fields, (*COLUMNS, ENCRYPTION))
    wanted = VersionFilter(
        name=name or None,
        snapshot_name=snapshot_name or None,
        tag=tag,
        expired_at=datetime.now(UTC) if expired else None,
    )
    with invocation.open_repository() as repository:
        report = matching_versions(repository, wanted, count_encryption=ENCRYPTION in columns)
    print_rows(invocation, as_rows(report), columns)
