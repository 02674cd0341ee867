"""`backyfs repair`: store damaged blocks anew from where their bytes can still be had."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import optional_versions_argument
from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import Row, json_object, print_json, print_rows
from backyfs.cli.sizes import human_size
from backyfs.cli.text import stored_text
from backyfs.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from backyfs.cli.invocation import Invocation
    from backyfs.engine.damage.repair import RepairReport
    from backyfs.model import DamagedRange, Version
    from backyfs.repository import Repository

_log = logging.getLogger("backyfs.cli")


@click.command()
@optional_versions_argument
@click.option("--from", "source", metavar="SOURCE", callback=stored_text, help="The image that was backed up.")
@click.option(
    "--from-config",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="The configuration of another repository that may have the blocks.",
)
@click.option("--search", is_flag=True, help="Look for the blocks all over SOURCE, not only at their places.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what can be repaired, and store nothing.")
@click.pass_obj
def command(
    invocation: Invocation,
    versions: tuple[str, ...],
    *,
    source: str | None,
    from_config: str | None,
    search: bool,
    dry_run: bool,
) -> None:
    """Store the damaged blocks of each VERSION anew, of all versions if none is named.

    Damaged is what scrub, restore or mount have found so. Their bytes are taken from SOURCE, from another repository,
    or from another block of this one, and only where their fingerprints are right. All versions that have such a block
    are whole at once, and those that were valid are valid again. What stays damaged is listed, and the exit status
    is 20. See docs/use/repair.md.
    """
    from backyfs.engine.damage.repair import RepairRequest, repair  # noqa: PLC0415 - slow to load
    from backyfs.sources.registry import open_source  # noqa: PLC0415

    if search and source is None:
        raise UsageError("--search looks for blocks all over a source; name one with --from")
    told: list[Row] = []

    def tell(version: Version, damage: DamagedRange) -> None:
        _log.error("version %s: bytes %d to %d: %s", version.uid, damage.start, damage.stop, damage.reason)
        told.append({"uid": version.uid, "start": damage.start, "stop": damage.stop, "reason": damage.reason})

    with invocation.open_repository() as repository, invocation.control() as control, ExitStack() as opened:
        chosen = _find(repository, versions) if versions else None
        image = None if source is None else open_source(source, repository.config)
        if image is not None:
            opened.callback(image.close)
        other = None if from_config is None else opened.enter_context(_open_other(from_config))
        request = RepairRequest(versions=chosen, source=image, other=other, search=search, dry_run=dry_run)
        report = repair(repository, request, control=control, tell=tell)
        row = _row(report)
        value = json_object(row | {"versions_valid": report.versions_valid}, ranges=told)
        error = _error(report)
        invocation.record(repository, value, error)
    if invocation.form is OutputForm.JSON:
        print_json(value)
    elif invocation.form is OutputForm.PIPE:
        print_rows(invocation, [row], list(row))
    else:
        _print(report, dry_run=dry_run)
    if error is not None:
        raise error


def _error(report: RepairReport) -> IntegrityError | None:
    if not report.blobs_left:
        return None
    return IntegrityError(
        f"{report.blobs_left} damaged blobs cannot be repaired from there; the ranges are listed above. Everything "
        "else of these versions can be restored"
    )


def _find(repository: Repository, versions: tuple[str, ...]) -> tuple[Version, ...]:
    from backyfs.metadata.records.versions import find_version  # noqa: PLC0415 - slow to load

    with repository.database.read() as connection:
        found = {version.id: version for version in (find_version(connection, text) for text in versions)}
    return tuple(found.values())


def _open_other(config_file: str) -> AbstractContextManager[Repository]:
    """Open another repository, without asking for a passphrase: the one that was asked for is of this one."""
    from backyfs.repository import open_repository  # noqa: PLC0415 - slow to load
    from backyfs.trust import load_trusted_config  # noqa: PLC0415

    config, warnings = load_trusted_config(config_file, {})
    for warning in warnings:
        _log.warning("%s", warning)
    return open_repository(config)


def _row(report: RepairReport) -> Row:
    return {
        "blobs_damaged": report.blobs_damaged,
        "blobs_repaired": report.blobs_repaired,
        "bytes_repaired": report.bytes_repaired,
        "bytes_stored": report.bytes_stored,
        "blobs_left": report.blobs_left,
        "duration_s": round(report.duration_s, 3),
    }


def _print(report: RepairReport, *, dry_run: bool) -> None:
    click.echo(
        f"{_blobs(report.blobs_damaged)} damaged; {'can be repaired' if dry_run else 'repaired'}: "
        f"{report.blobs_repaired or 'none'}, {human_size(report.bytes_repaired)}; left: {report.blobs_left}"
    )
    for uid in report.versions_valid:
        click.echo(f"version {uid} is valid again")


def _blobs(count: int) -> str:
    return f"{count} blob" if count == 1 else f"{count} blobs"
