"""`backyfs scrub`: read stored blocks back and check them."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from backyfs.cli.ages import AGE
from backyfs.cli.arguments import optional_versions_argument
from backyfs.cli.hooked import hooked
from backyfs.cli.invocation import OutputForm
from backyfs.cli.options import OptionalValue
from backyfs.cli.output import Row, json_object, print_json
from backyfs.cli.sizes import human_size
from backyfs.engine.damage.scrub import ScrubReport, ScrubRequest, scrub
from backyfs.errors import IntegrityError, UsageError
from backyfs.metadata.records.versions import find_version
from backyfs.sources.registry import open_source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta

    from backyfs.cli.invocation import Invocation
    from backyfs.metadata.db.database import Connection
    from backyfs.model import DamagedRange, Version

_log = logging.getLogger("backyfs.cli")


@click.command()
@optional_versions_argument
@click.option("--all", "all_versions", is_flag=True, help="Check the blocks of all versions.")
@click.option(
    "-p",
    "--percentile",
    cls=OptionalValue,
    type=click.IntRange(0, 100),
    default=100,
    show_default=True,
    metavar="PERCENT",
    help="Check a random PERCENT of the blocks; 0 reads none.",
)
@click.option(
    "-s", "--source", cls=OptionalValue, metavar="SOURCE", help="Compare the version with this image, too."
)
@click.option(
    "--not-since",
    type=AGE,
    metavar="AGE",
    help="Check only blocks that were not checked for so long, as in 30d, those never checked first.",
)
@click.pass_obj
@hooked("scrub", "versions", "source")
def command(
    invocation: Invocation,
    versions: tuple[str, ...],
    *,
    all_versions: bool,
    percentile: int,
    source: str | None,
    not_since: timedelta | None,
) -> None:
    """Read the stored blocks of each VERSION back and check them.

    A block that several versions share is read once. Damaged blocks are marked, and so is every version that has
    them; their ranges are named, and the exit status is 20. Versions whose damage is gone are valid again, unless
    only a sample was checked. A range in which SOURCE differs is named, and the exit status is 20 as well, but
    nothing is marked: sources change. See docs/operate/scrub.md.
    """
    if all_versions == bool(versions):
        raise UsageError("name versions to check, or give --all; not both")
    told: list[Row] = []

    def tell(version: Version, damage: DamagedRange) -> None:
        _log.error("version %s: bytes %d to %d: %s", version.uid, damage.start, damage.stop, damage.reason)
        told.append({"uid": version.uid, "start": damage.start, "stop": damage.stop, "reason": damage.reason})

    with invocation.open_repository() as repository, invocation.control() as control, ExitStack() as opened:
        with repository.database.read() as connection:
            wanted = None if all_versions else _find(connection, versions)
        image = None
        if source is not None:
            if wanted is None or len(wanted) != 1:
                raise UsageError("--source is the image of one version; name that version alone")
            image = open_source(source, repository.config)
            opened.callback(image.close)
        request = ScrubRequest(
            versions=wanted,
            percentile=percentile,
            not_since=None if not_since is None else datetime.now(UTC) - not_since,
            source=image,
        )
        report = scrub(repository, request, control=control, tell=tell)
        value = _value(report, told)
        findings = [IntegrityError(finding) for finding in _findings(report)]
        invocation.record(repository, value, findings[-1] if findings else None)
    _print(invocation, report, value)
    for finding in findings[:-1]:
        _log.error("%s", finding)
    if findings:
        raise findings[-1]


def _find(connection: Connection, versions: tuple[str, ...]) -> tuple[Version, ...]:
    found = {version.id: version for version in (find_version(connection, text) for text in versions)}
    return tuple(found.values())


def _value(report: ScrubReport, told: list[Row]) -> dict[str, object]:
    row: Row = {
        "blobs_checked": report.blobs_checked,
        "bytes_checked": report.bytes_checked,
        "blobs_damaged": report.blobs_damaged,
        "blobs_repaired": report.blobs_repaired,
        "bytes_unknown": report.bytes_unknown,
        "references_right": report.references_right,
        "bytes_differing": report.bytes_differing,
        "versions_invalid": report.versions_invalid,
        "versions_valid": report.versions_valid,
        "duration_s": round(report.duration_s, 3),
    }
    return json_object(row, ranges=told)


def _print(invocation: Invocation, report: ScrubReport, value: dict[str, object]) -> None:
    if invocation.form is OutputForm.JSON:
        print_json(value)
    elif invocation.form is OutputForm.TABLE:
        rate = int(report.bytes_checked / max(report.duration_s, 0.001))
        click.echo(
            f"{_blobs(report.blobs_checked)} checked, {human_size(report.bytes_checked)} in {report.duration_s:.1f} s "
            f"({human_size(rate)}/s): {report.blobs_damaged or 'none'} damaged"
        )
        for uid in report.versions_invalid:
            click.echo(f"version {uid} is invalid now")
        if report.blobs_repaired:
            click.echo(f"marked as damaged, and whole again: {_blobs(report.blobs_repaired)}")
        for uid in report.versions_valid:
            click.echo(f"version {uid} is valid again")


def _blobs(count: int) -> str:
    return f"{count} blob" if count == 1 else f"{count} blobs"


def _findings(report: ScrubReport) -> Iterator[str]:
    if report.blobs_damaged:
        yield (
            f"damage in {_blobs(report.blobs_damaged)}, which are marked; the ranges are listed above. Versions that "
            "have them are invalid; back up their sources anew or run `backyfs repair`, and keep what can be restored"
        )
    if report.bytes_unknown:
        yield (
            f"the block maps of versions are damaged in {report.bytes_unknown} bytes of their images, listed above; "
            "their objects may be whole: keep the storage, and rebuild the database with `backyfs recover`"
        )
    if report.references_right is False:
        yield (
            "the database counts other references to blocks than there are, so that a cleanup might delete what is in "
            "use; run `backyfs cleanup --full` before any other cleanup"
        )
    if report.bytes_differing:
        yield (
            f"the source differs in {report.bytes_differing} bytes, listed above; for that nothing was marked. Was it "
            "changed after the backup, or is it another image?"
        )
