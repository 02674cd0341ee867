"""`backyfs ls`: list the versions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from backyfs.cli.invocation import OutputForm
from backyfs.cli.options import OptionalValue
from backyfs.cli.output import Row, chosen_columns, fields_option, print_object, print_rows
from backyfs.cli.stdout import run_for_output
from backyfs.cli.tags import ONE_TAG
from backyfs.cli.text import stored_text
from backyfs.geometry import block_count
from backyfs.metadata.records.versions import list_versions
from backyfs.model import Version, VersionStatus

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation

_COLUMNS = (
    "date", "name", "snapshot_name", "size", "size_bytes", "uid", "valid", "protected", "tags", "expire",
)  # fmt: skip
_ENCRYPTION = "encryption_versions"  # takes a look at all block maps, so it has to be asked for


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
    """List the versions, all of them or those of NAME.

    `size` is the number of blocks. Times are in UTC. JSON output has `status` besides: incomplete, valid or
    invalid. An empty NAME, TEXT or TAG does not filter.

    A further field is `encryption_versions`: how many blocks have which encryption version, as 0:12,2:300.
    """
    columns = _COLUMNS if fields is None else chosen_columns(fields, (*_COLUMNS, _ENCRYPTION))
    now = datetime.now(UTC)
    with invocation.open_repository() as repository:
        with repository.database.read() as connection:
            versions = list_versions(connection, name=name or None)
        wanted = [
            version
            for version in versions
            if (not snapshot_name or version.snapshot_name == snapshot_name)
            and (tag is None or tag in version.tag_names)
            and (not expired or (version.expire_at is not None and version.expire_at < now))
        ]
        rows = [version_row(version, repository.block_size) for version in wanted]
        if _ENCRYPTION in columns:
            from backyfs.metadata.maps.usage import (  # noqa: PLC0415 - nothing else here reads block maps
                encryption_of_blocks,
            )

            with repository.database.read() as connection:
                for row, found in zip(rows, encryption_of_blocks(connection, wanted), strict=True):
                    row[_ENCRYPTION] = found
    print_rows(invocation, rows, columns)


def print_version(invocation: Invocation, version: Version, block_size: int) -> None:
    """Print a version that a command has changed; nothing where backy2 prints nothing."""
    row = version_row(version, block_size)
    if invocation.form is OutputForm.JSON:
        print_object(row)
    elif invocation.form is OutputForm.TABLE:
        print_rows(invocation, [row], ("uid", "name", "date", "protected", "tags", "expire"))


def version_row(version: Version, block_size: int) -> Row:
    """Return a version as a row, with the field names of backy2 and ours."""
    return {
        "uid": version.uid,
        "date": version.created_at,
        "name": version.name,
        "snapshot_name": version.snapshot_name,
        "size": block_count(version.size_bytes, block_size),
        "size_bytes": version.size_bytes,
        "valid": version.status is VersionStatus.VALID,
        "protected": version.protected,
        "tags": version.tags,
        "expire": version.expire_at,
        "status": version.status.value,
    }
