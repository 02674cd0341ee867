"""`backyfs migrate-encryption`: re-encrypt stored blocks."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import optional_versions_argument
from backyfs.cli.failures import raise_all
from backyfs.cli.invocation import noting_signals
from backyfs.cli.moments import MOMENT
from backyfs.cli.output import print_report, print_rows
from backyfs.cli.stdout import expect_printed
from backyfs.cli.text import printable
from backyfs.errors import ConfigError, UsageError
from backyfs.reports.migrate_encryption import COLUMNS, PLAN_COLUMNS, as_object, plan_as_rows
from backyfs.text import human_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.cli.invocation import Invocation
    from backyfs.engine.secrets.migrate import MigrationReport
    from backyfs.engine.secrets.rotation import RotationReport

_log = logging.getLogger("backyfs.cli")


@click.command("migrate-encryption")
@optional_versions_argument
@click.option("--all", "all_versions", is_flag=True, help="Re-encrypt the blocks of all versions.")
@click.option("--to", "number", type=click.IntRange(0), metavar="N", help="The encryption version that they get.")
@click.option("--reseal", is_flag=True, help="Give blocks new data keys, and the repository a new key.")
@click.option(
    "--older-than",
    type=MOMENT,
    metavar="DATE",
    help="With --reseal: only blocks, and a repository key, from before DATE.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Show how much would be re-encrypted, and change nothing.")
@click.option("--workers", type=click.IntRange(1, 256), metavar="N", help="Re-encrypt N blocks at once.")
@click.pass_obj
def command(
    invocation: Invocation,
    versions: tuple[str, ...],
    *,
    all_versions: bool,
    number: int | None,
    reseal: bool,
    older_than: datetime | None,
    dry_run: bool,
    workers: int | None,
) -> None:
    """Re-encrypt the stored blocks of each VERSION, in the encryption version that new blocks get, or in N.

    Other commands can run in the meantime. It can be stopped and started again. The old objects are deleted by
    `cleanup`. A block that cannot be read is not changed, and the exit status is 20.

    With --reseal, all blocks get new data keys under a new repository key. After the next `cleanup`, anyone with the
    old keys and a copy of the database can no longer decrypt what is stored. All key slots are removed, except for that
    of the configured key or passphrase. See docs/operate/encryption.md.
    """
    if all_versions == bool(versions):
        raise UsageError("name versions whose blocks should be re-encrypted, or give --all; not both")
    if older_than is not None and not reseal:
        raise UsageError("--older-than limits what --reseal re-encrypts; add --reseal")
    before = (older_than or datetime.now(UTC)) if reseal else None
    rotation = _rotate(invocation, before) if before is not None and not dry_run else None
    from backyfs.engine.secrets.migrate import migrate, plan_migration, requested_migration  # noqa: PLC0415 - slow

    with invocation.open_repository() as repository, invocation.control() as control:
        try:
            request = requested_migration(
                repository, None if all_versions else versions, to=number, before=before, workers=workers
            )
        except ConfigError as error:
            raise UsageError(error.fact, subject="--to", remedy=error.remedy) from error
        if dry_run:
            print_rows(invocation, plan_as_rows(plan_migration(repository, request)), PLAN_COLUMNS, sizes=("bytes",))
            expect_printed()
            return
        report = migrate(repository, request, control=control)
        value = as_object(report, rotation)
        invocation.record(repository, value, report.errors)
    print_report(invocation, value, _lines(report), COLUMNS)
    for uid, reason in report.damaged.items():
        _log.error("blob %s was not changed: %s", uid, reason.without(f"blob {uid}"))
    raise_all(report.errors)


def _rotate(invocation: Invocation, before: datetime) -> RotationReport | None:
    """Give the repository a new key, unless its key is newer than `before`; the new key opens it from now on."""
    from backyfs.engine.secrets.rotation import rotate_configured  # noqa: PLC0415 - SQLAlchemy is slow to load

    with invocation.open_repository() as repository:
        report = rotate_configured(repository, invocation.asking(), older_than=before)
    if report is None:
        return None
    with noting_signals(invocation.interrupted):
        invocation.service.publish()
    for slot in report.removed:
        _log.warning(
            "key slot %s was removed, because its key or passphrase is not known here; make it again with "
            "`backyfs key add`",
            printable(slot.label),
        )
    if report.left:
        _log.warning("%d data keys were not opened by the old key and were not changed", report.left)
    _log.warning("the repository has a new key: print its recovery page again with `backyfs key print`")
    return report


def _lines(report: MigrationReport) -> Iterator[str]:
    rate = int(report.bytes / max(report.duration_s, 0.001))
    yield (
        f"{report.blobs} blobs re-encrypted, {human_size(report.bytes)} in {report.duration_s:.1f} s "
        f"({human_size(rate)}/s), {human_size(report.stored_bytes)} stored"
    )
    if report.merged:
        yield f"{report.merged} blobs were replaced by others with the same contents"
    if report.blobs or report.merged:
        yield "The old objects are deleted by `backyfs cleanup`."
