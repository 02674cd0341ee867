"""`backyfs scrub`: read stored blocks back and check them."""

from __future__ import annotations

from contextlib import ExitStack, closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from backyfs.cli.ages import AGE
from backyfs.cli.arguments import optional_versions_argument
from backyfs.cli.damage import MOST_RECORDED, DamageLog, count_blobs
from backyfs.cli.failures import raise_all
from backyfs.cli.hooked import hooked
from backyfs.cli.invocation import OutputForm
from backyfs.cli.options import OptionalValue
from backyfs.cli.output import print_object
from backyfs.cli.requests import requests_lines
from backyfs.engine.damage.scrub import ScrubReport, ScrubRequest, scrub
from backyfs.engine.versions.named import named_versions
from backyfs.errors import UsageError
from backyfs.reports.scrub import as_object
from backyfs.sources.registry import open_source
from backyfs.text import human_size

if TYPE_CHECKING:
    from datetime import timedelta

    from backyfs.cli.invocation import Invocation
    from backyfs.model import RequestCounts
    from backyfs.reports.values import Object


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
    "-s", "--source", cls=OptionalValue, metavar="SOURCE", help="Also compare the version with this image."
)
@click.option(
    "--not-since",
    type=AGE,
    metavar="AGE",
    help="Check only blocks not checked within AGE, such as 30d, unchecked ones first.",
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

    A block that several versions share is read once. Damaged blocks are marked, and so is every version that has them;
    their ranges are listed, and the exit status is 20. Versions whose damage is gone become valid again, unless only a
    sample was checked. Ranges in which SOURCE differs are also listed, with exit status 20, but nothing is marked:
    sources change. See docs/operate/scrub.md.
    """
    if all_versions == bool(versions):
        raise UsageError("name versions to check, or give --all; not both")
    damage = DamageLog(None if invocation.form is OutputForm.JSON else MOST_RECORDED)
    with invocation.open_repository() as repository, invocation.control() as control, ExitStack() as opened:
        wanted = None if all_versions else named_versions(repository, versions)
        image = None
        if source is not None:
            if wanted is None or len(wanted) != 1:
                raise UsageError("--source is the image of one version; name that version alone")
            image = opened.enter_context(closing(open_source(source, repository.config)))
        request = ScrubRequest(
            versions=wanted,
            percentile=percentile,
            not_since=None if not_since is None else datetime.now(UTC) - not_since,
            source=image,
        )
        report = scrub(repository, request, control=control, on_damage=damage)
        requests = repository.requests
        value = as_object(report, damage.found, requests)
        invocation.record(repository, value, report.errors)
    _print(invocation, report, value, requests)
    raise_all(report.errors)


def _print(invocation: Invocation, report: ScrubReport, value: Object, requests: RequestCounts) -> None:
    if invocation.form is OutputForm.JSON:
        print_object(value)
    elif invocation.form is OutputForm.TABLE:
        rate = int(report.bytes_checked / max(report.duration_s, 0.001))
        click.echo(
            f"{count_blobs(report.blobs_checked)} checked, {human_size(report.bytes_checked)} in "
            f"{report.duration_s:.1f} s ({human_size(rate)}/s): {report.blobs_damaged or 'none'} damaged"
        )
        for uid in report.versions_invalid:
            click.echo(f"version {uid} is invalid now")
        if report.blobs_repaired:
            click.echo(f"marked as damaged, but intact again: {count_blobs(report.blobs_repaired)}")
        for uid in report.versions_valid:
            click.echo(f"version {uid} is valid again")
        for line in requests_lines(requests):
            click.echo(line)
