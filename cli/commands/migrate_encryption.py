"""`backyfs migrate-encryption`: seal stored blocks anew."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import optional_versions_argument
from backyfs.cli.invocation import OutputForm
from backyfs.cli.moments import MOMENT
from backyfs.cli.output import Row, json_object, print_json, print_rows
from backyfs.cli.sizes import human_size
from backyfs.cli.stdout import expect_printed
from backyfs.cli.text import printable
from backyfs.errors import ConfigError, IntegrityError, UsageError

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation
    from backyfs.engine.secrets.migrate import MigrationPlan, MigrationReport
    from backyfs.engine.secrets.rotation import RotationReport
    from backyfs.model import Version
    from backyfs.repository import Repository

_log = logging.getLogger("backyfs.cli")


@click.command("migrate-encryption")
@optional_versions_argument
@click.option("--all", "all_versions", is_flag=True, help="Seal the blocks of all versions anew.")
@click.option("--to", "number", type=click.IntRange(0), metavar="N", help="The encryption version to take them to.")
@click.option("--reseal", is_flag=True, help="Give blocks new data keys, and the repository a new key.")
@click.option(
    "--older-than", type=MOMENT, metavar="DATE", help="With --reseal: only blocks sealed before, and such a key."
)
@click.option("-n", "--dry-run", is_flag=True, help="Show how much there is to do, and do nothing.")
@click.option("--workers", type=click.IntRange(1, 256), metavar="N", help="Seal so many blocks at once.")
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
    """Seal the stored blocks of each VERSION anew, in the encryption version that new blocks get, or in N.

    Other commands go on meanwhile. It can be ended and started again. The old objects are deleted by `cleanup`. A
    block that cannot be read stays as it is, and the exit status is 20.

    With --reseal, all blocks get new data keys under a new repository key: who has seen the old keys and has a copy
    of the database opens nothing that is stored any more, once `cleanup` has run. All key slots but the one of the
    configured key or passphrase are removed. See docs/operate/encryption.md.
    """
    if all_versions == bool(versions):
        raise UsageError("name versions whose blocks are to be sealed anew, or give --all; not both")
    if older_than is not None and not reseal:
        raise UsageError("--older-than says what --reseal seals anew; add --reseal")
    before = (older_than or datetime.now(UTC)) if reseal else None
    rotation = _rotate(invocation, before) if before is not None and not dry_run else None
    from backyfs.engine.secrets.migrate import MigrationRequest, migrate, plan_migration  # noqa: PLC0415 - slow to load
    from backyfs.metadata.upkeep.migration import Outdated  # noqa: PLC0415

    with invocation.open_repository() as repository, invocation.control() as control:
        request = MigrationRequest(
            versions=None if all_versions else _find(repository, versions),
            outdated=Outdated(to=_target(repository, number), before=before),
            workers=workers,
        )
        if dry_run:
            _print_plan(invocation, plan_migration(repository, request))
            expect_printed()
            return
        report = migrate(repository, request, control=control)
        value, error = _value(report, rotation), _error(report)
        invocation.record(repository, value, error)
    _print_report(invocation, report, value)
    for uid, reason in report.damaged.items():
        _log.error("blob %s stays as it is: %s", uid, reason.removeprefix(f"blob {uid} "))
    if error is not None:
        raise error


def _error(report: MigrationReport) -> IntegrityError | None:
    if not report.damaged:
        return None
    return IntegrityError(
        f"{len(report.damaged)} damaged blobs were not sealed anew, listed above; run `backyfs scrub --all` to learn "
        "which versions have them"
    )


def _rotate(invocation: Invocation, before: datetime) -> RotationReport | None:
    """Give the repository a new key, if the one it has is that old; what follows opens it with that."""
    from backyfs.engine.secrets.rotation import rotate_repository_key  # noqa: PLC0415 - slow to load
    from backyfs.keys.slots import Secret  # noqa: PLC0415
    from backyfs.repository.keyring import configured_secret  # noqa: PLC0415

    with invocation.open_repository() as repository:
        secret = configured_secret(repository.config)
        ask = invocation.asking()
        if secret is None and ask is not None:
            secret = Secret(passphrase=ask())
        if secret is None:
            raise UsageError("--reseal makes a new key slot, and the configuration has neither key nor passphrase")
        report = rotate_repository_key(repository.database, secret, older_than=before)
    if report is not None:
        _tell_rotation(report)
    return report


def _tell_rotation(report: RotationReport) -> None:
    for slot in report.removed:
        _log.warning(
            "key slot %s was removed, because its key or passphrase is not known here; `backyfs key add` makes it anew",
            printable(slot.label),
        )
    if report.left:
        _log.warning("%d data keys were not opened by the old key and stay as they were", report.left)
    _log.warning("the repository has a new key: print its recovery page anew with `backyfs key print`")


def _find(repository: Repository, versions: tuple[str, ...]) -> tuple[Version, ...]:
    from backyfs.metadata.records.versions import find_version  # noqa: PLC0415 - slow to load

    with repository.database.read() as connection:
        found = {version.id: version for version in (find_version(connection, text) for text in versions)}
    return tuple(found.values())


def _target(repository: Repository, number: int | None) -> int:
    from backyfs import sealing  # noqa: PLC0415 - slow to load

    if number is None:
        return repository.blocks.encryption_version
    try:
        sealing.check_configured(number)
    except ConfigError as error:
        raise UsageError(error.fact, subject="--to", remedy=error.remedy) from error
    return number


def _print_plan(invocation: Invocation, plan: MigrationPlan) -> None:
    rows: list[Row] = [
        {"encryption_version": count.encryption_version, "blobs": count.blobs, "bytes": count.bytes}
        for count in plan.counts
    ]
    print_rows(invocation, rows, ("encryption_version", "blobs", "bytes"), sizes=("bytes",))


def _row(report: MigrationReport) -> Row:
    return {
        "blobs": report.blobs,
        "bytes": report.bytes,
        "stored_bytes": report.stored_bytes,
        "merged": report.merged,
        "damaged": len(report.damaged),
        "duration_s": round(report.duration_s, 3),
    }


def _value(report: MigrationReport, rotation: RotationReport | None) -> dict[str, object]:
    removed = [] if rotation is None else [slot.label for slot in rotation.removed]
    return json_object(_row(report) | {"rotated": rotation is not None, "slots_removed": removed})


def _print_report(invocation: Invocation, report: MigrationReport, value: dict[str, object]) -> None:
    if invocation.form is OutputForm.JSON:
        print_json(value)
    elif invocation.form is OutputForm.PIPE:
        row = _row(report)
        print_rows(invocation, [row], list(row))
    else:
        rate = int(report.bytes / max(report.duration_s, 0.001))
        click.echo(
            f"{report.blobs} blobs sealed anew, {human_size(report.bytes)} in {report.duration_s:.1f} s "
            f"({human_size(rate)}/s), {human_size(report.stored_bytes)} stored"
        )
        if report.merged:
            click.echo(f"{report.merged} blobs: others with the same bytes have their places now")
        if report.blobs or report.merged:
            click.echo("The old objects are deleted by `backyfs cleanup`.")
