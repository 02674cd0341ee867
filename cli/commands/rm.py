"""`backyfs rm`: remove versions."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import optional_versions_argument
from backyfs.cli.failures import raise_all
from backyfs.cli.hooks import hooked
from backyfs.cli.invocation import OutputForm, stop_on_signals
from backyfs.cli.output import print_rows
from backyfs.cli.text import printable
from backyfs.engine.remove import remove_versions
from backyfs.errors import BackyfsError, UsageError
from backyfs.metadata.versions import find_version, list_versions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.cli.invocation import Invocation
    from backyfs.cli.output import Row
    from backyfs.engine.remove import Removal
    from backyfs.model import Version

_log = logging.getLogger("backyfs.cli")


@click.command()
@optional_versions_argument
@click.option(
    "-f", "--force", is_flag=True, help="Remove versions younger than disallow_rm_when_younger_than_days, too."
)
@click.option("--expired", is_flag=True, help="Remove all versions whose date of expiry has passed.")
@click.pass_obj
@hooked("rm", "versions")
def command(invocation: Invocation, versions: tuple[str, ...], *, force: bool, expired: bool) -> None:
    """Remove each VERSION.

    Versions that are protected, or in use by a running command, stay, with --force as well. All that can go are
    removed; the exit status is 4 if one stays, but for --expired, which only warns of it. If a VERSION is not
    there, nothing is removed. The space in the storage is free after the next cleanup.
    """
    if bool(versions) == expired:
        raise UsageError("name the versions to remove, or give --expired")
    now = datetime.now(UTC)

    def still(version: Version) -> bool:
        return not expired or _has_expired(version, now)

    removals: list[Removal] = []
    try:
        with invocation.open_repository() as repository, stop_on_signals() as stop:
            with repository.database.read() as connection:
                wanted = (
                    [version for version in list_versions(connection) if _has_expired(version, now)]
                    if expired
                    else [find_version(connection, name) for name in versions]
                )
            remove_versions(
                repository,
                wanted,
                younger_than_days=repository.config.disallow_rm_when_younger_than_days,
                force=force,
                now=now,
                still=still,
                stop=stop,
                announce=removals.append,
            )
    except (BackyfsError, KeyboardInterrupt):
        if removals:
            _print(invocation, removals)
        raise
    _print(invocation, removals)
    kept = [removal.kept for removal in removals if removal.kept is not None]
    if expired:
        for reason in kept:
            _log.warning("kept: %s", reason)
    else:
        raise_all(kept)


def _has_expired(version: Version, now: datetime) -> bool:
    return version.expire_at is not None and version.expire_at < now


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
