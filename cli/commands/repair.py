"""`backyfs repair`: store damaged blocks again, from another copy of their contents."""

from __future__ import annotations

import logging
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import optional_versions_argument
from backyfs.cli.damage import MOST_RECORDED, DamageLog, count_blobs
from backyfs.cli.failures import raise_all
from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import print_report
from backyfs.cli.text import stored_text
from backyfs.errors import UsageError
from backyfs.reports.repair import COLUMNS, as_object
from backyfs.service import Service
from backyfs.text import human_size
from backyfs.trust import load_trusted_config

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from backyfs.cli.invocation import Invocation
    from backyfs.engine.damage.repair import RepairReport
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
@click.option("--search", is_flag=True, help="Look for the blocks everywhere in SOURCE, not only at their places.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what can be repaired, and store nothing.")
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
    """Store the damaged blocks of each VERSION again; without VERSION, those of all versions.

    Blocks are damaged if scrub, restore or mount found them so. Their contents are taken from SOURCE, from another
    repository, or from another block of this one, and only if their fingerprints are right. This repairs every version
    that has such a block, and versions that were valid before become valid again. Blocks that stay damaged are listed,
    and the exit status is 20. See docs/use/repair.md.
    """
    from backyfs.engine.damage.repair import RepairRequest, repair  # noqa: PLC0415 - SQLAlchemy is slow to load
    from backyfs.engine.versions.named import named_versions  # noqa: PLC0415 - as above
    from backyfs.sources.registry import open_source  # noqa: PLC0415 - as above

    if search and source is None:
        raise UsageError("--search looks for blocks all over a source; name one with --from")
    damage = DamageLog(None if invocation.form is OutputForm.JSON else MOST_RECORDED)
    with invocation.open_repository() as repository, invocation.control() as control, ExitStack() as opened:
        request = RepairRequest(
            versions=named_versions(repository, versions) if versions else None,
            source=None
            if source is None
            else opened.enter_context(closing(open_source(source, repository.config))),
            other=None if from_config is None else opened.enter_context(_open_other(from_config)),
            search=search,
            dry_run=dry_run,
        )
        report = repair(repository, request, control=control, on_damage=damage)
        value = as_object(report, damage.found)
        invocation.record(repository, value, report.errors)
    print_report(invocation, value, _lines(report, dry_run=dry_run), COLUMNS)
    raise_all(report.errors)


def _open_other(config_file: str) -> AbstractContextManager[Repository]:
    """Open another repository, without asking for a passphrase: the one that was asked for is of this repository."""
    config, warnings = load_trusted_config(config_file, {})
    for warning in warnings:
        _log.warning("%s", warning)
    return Service(config=config).open_as_it_is()


def _lines(report: RepairReport, *, dry_run: bool) -> list[str]:
    summary = (
        f"{count_blobs(report.blobs_damaged)} damaged; {'can be repaired' if dry_run else 'repaired'}: "
        f"{report.blobs_repaired or 'none'}, {human_size(report.bytes_repaired)}; left: {report.blobs_left}"
    )
    return [summary, *(f"version {uid} is valid again" for uid in report.versions_valid)]
