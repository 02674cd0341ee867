"""`backyfs rm`: remove versions."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import optional_versions_argument
from backyfs.cli.failures import raise_all
from backyfs.cli.hooked import hooked
from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import json_rows, print_rows
from backyfs.cli.remedies import render_error
from backyfs.cli.text import printable
from backyfs.engine.versions.remove import plan_removals, remove_versions
from backyfs.errors import BackyfsError, UsageError
from backyfs.metadata.records.versions import find_version, list_versions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.cli.invocation import Invocation
    from backyfs.cli.output import Row
    from backyfs.engine.versions.remove import Removal
    from backyfs.model import Version

_log = logging.getLogger("backyfs.cli")


@click.command()
@optional_versions_argument
@click.option(
    "-f",
    "--force",
    is_flag=True,
    help="Also remove versions younger than disallow_rm_when_younger_than_days and, if named, the last valid version "
    "of a name.",
)
@click.option("--expired", is_flag=True, help="Remove all versions whose date of expiry has passed.")
@click.option("--even-last", is_flag=True, help="With --expired: also remove the last valid version of a name.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be removed and what stays, and remove nothing.")
@click.pass_obj
@hooked("rm", "versions", "dry_run")
def command(
    invocation: Invocation, versions: tuple[str, ...], *, force: bool, expired: bool, even_last: bool, dry_run: bool
) -> None:
    """Remove each VERSION.

    Versions that are protected or in use by a running command are kept, even with --force. So is the last valid version
    of a name, unless it is named and --force is given. With --expired, --force is not enough for that: it takes
    --even-last. Every other version is removed. The exit status is 4 if any version was kept, except with --expired,
    which only warns. If a VERSION does not exist, nothing is removed. The space in the storage is freed by the next
    cleanup.
    """
    if bool(versions) == expired:
        raise UsageError("name the versions to remove, or give --expired")
    if even_last and not expired:
        raise UsageError("--even-last is for --expired; to remove a named last version, use --force")
    now = datetime.now(UTC)
    removals: list[Removal] = []
    try:
        with invocation.open_repository() as repository, invocation.control(is_quiet=True) as control:
            with repository.database.read() as connection:
                wanted = (
                    [version for version in list_versions(connection) if _has_expired(version, now)]
                    if expired
                    else [find_version(connection, name, now=now) for name in versions]
                )
            keep_last = not (even_last if expired else force)
            days = repository.config.disallow_rm_when_younger_than_days
            if dry_run:
                removals += plan_removals(
                    repository, wanted, younger_than_days=days, force=force, keep_last=keep_last, now=now
                )
            else:
                remove_versions(
                    repository,
                    wanted,
                    younger_than_days=days,
                    force=force,
                    keep_last=keep_last,
                    now=now,
                    still=lambda version: not expired or _has_expired(version, now),
                    control=control,
                    announce=removals.append,
                )
            kept = [removal.kept for removal in removals if removal.kept is not None]
            report = json_rows(_rows(removals, dry_run=dry_run))
            invocation.record(repository, report, kept[0] if kept and not expired else None)
    except (BackyfsError, KeyboardInterrupt):
        if removals:
            _print(invocation, removals, dry_run=dry_run)
        raise
    _print(invocation, removals, dry_run=dry_run)
    if expired:
        for reason in kept:
            _log.warning("kept: %s", reason)
    else:
        raise_all(kept)


def _has_expired(version: Version, now: datetime) -> bool:
    return version.expire_at is not None and version.expire_at < now


def _rows(removals: Sequence[Removal], *, dry_run: bool) -> list[Row]:
    return [
        {
            "uid": removal.version.uid,
            "name": removal.version.name,
            "removed": removal.kept is None and not dry_run,
            "removable": removal.kept is None,
            "reason": None if removal.kept is None else render_error(removal.kept),
        }
        for removal in removals
    ]


def _print(invocation: Invocation, removals: Sequence[Removal], *, dry_run: bool) -> None:
    if invocation.form is OutputForm.JSON:
        print_rows(invocation, _rows(removals, dry_run=dry_run), ())
    elif invocation.form is OutputForm.TABLE:
        for removal in removals:
            if removal.kept is None:
                done = "would be removed" if dry_run else "removed"
                click.echo(f"version {removal.version.uid} of {printable(removal.version.name)} {done}")
