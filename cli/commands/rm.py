"""`backyfs rm`: remove versions."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import optional_versions_argument
from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import print_rows
from backyfs.cli.text import printable
from backyfs.engine.remove import remove_versions
from backyfs.errors import UsageError
from backyfs.metadata.versions import find_version, list_versions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.cli.invocation import Invocation
    from backyfs.cli.output import Row
    from backyfs.engine.remove import Removal
    from backyfs.metadata.database import Connection
    from backyfs.model import Version

_log = logging.getLogger("backyfs.cli")


@click.command()
@optional_versions_argument
@click.option(
    "-f", "--force", is_flag=True, help="Remove versions younger than disallow_rm_when_younger_than_days, too."
)
@click.option("--expired", is_flag=True, help="Remove all versions whose date of expiry has passed.")
@click.pass_obj
def command(invocation: Invocation, versions: tuple[str, ...], *, force: bool, expired: bool) -> None:
    """Remove each VERSION.

    Versions that are protected, or in use by a running command, stay, with --force as well. All that can go are
    removed; the exit status is 4 if one stays. Their space in the storage is free after the next cleanup. With
    --expired, those that are protected stay without an error.
    """
    if bool(versions) == expired:
        raise UsageError("name the versions to remove, or give --expired")
    config = invocation.load_config()
    now = datetime.now(UTC)
    with invocation.open_repository() as repository:
        with repository.database.read() as connection:
            wanted = _expired(connection, now) if expired else _named(connection, versions)
        removals = remove_versions(
            repository,
            wanted,
            younger_than_days=config.disallow_rm_when_younger_than_days,
            force=force,
            now=now,
        )
    _print(invocation, removals)
    kept = [removal.kept for removal in removals if removal.kept is not None]
    for error in kept[1:]:
        _log.error("%s", error)
    if kept:
        raise kept[0]


def _named(connection: Connection, names: Sequence[str]) -> list[Version]:
    """Return the versions that are named, each once; nothing is removed where one of them is not there."""
    found = [find_version(connection, name) for name in names]
    return list({version.id: version for version in found}.values())


def _expired(connection: Connection, now: datetime) -> list[Version]:
    return [
        version
        for version in list_versions(connection)
        if version.expire_at is not None and version.expire_at < now and not version.protected
    ]


def _print(invocation: Invocation, removals: Sequence[Removal]) -> None:
    if invocation.form is OutputForm.JSON:
        rows: list[Row] = [
            {
                "uid": removal.version.uid,
                "name": removal.version.name,
                "removed": removal.kept is None,
                "reason": None if removal.kept is None else str(removal.kept),
            }
            for removal in removals
        ]
        print_rows(invocation, rows, ())
    elif invocation.form is OutputForm.TABLE:
        for removal in removals:
            if removal.kept is None:
                click.echo(f"version {removal.version.uid} of {printable(removal.version.name)} removed")
