"""`backyfs ls`: list the versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.output import Row, print_rows
from backyfs.cli.text import stored_text
from backyfs.geometry import block_count
from backyfs.metadata.versions import list_versions
from backyfs.model import Version, VersionStatus

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation

_COLUMNS = (
    "date", "name", "snapshot_name", "size", "size_bytes", "uid", "valid", "protected", "tags", "expire",
)  # fmt: skip


@click.command()
@click.argument("name", callback=stored_text, required=False)
@click.pass_obj
def command(invocation: Invocation, name: str | None) -> None:
    """List the versions, all of them or those of NAME.

    `size` is the number of blocks. Times are in UTC. JSON output has `status` besides: incomplete, valid or
    invalid.
    """
    with invocation.open_repository() as repository:
        with repository.database.read() as connection:
            versions = list_versions(connection, name=name)
        rows = [version_row(version, repository.block_size) for version in versions]
    print_rows(invocation, rows, _COLUMNS)


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
