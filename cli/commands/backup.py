"""`backyfs backup`: back up an image or block device as a new version."""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import click

from backyfs.cli.hooked import hooked
from backyfs.cli.invocation import OutputForm
from backyfs.cli.moments import MOMENT
from backyfs.cli.options import OptionalValue
from backyfs.cli.output import print_object
from backyfs.cli.requests import requests_lines
from backyfs.cli.stdout import announce
from backyfs.cli.tags import TAGS
from backyfs.cli.text import printable, stored_text
from backyfs.engine.backup.backup import BackupReport, BackupRequest, backup
from backyfs.engine.versions.named import named_version
from backyfs.engine.versions.schedules import usual_schedulers
from backyfs.errors import HintsError
from backyfs.files import read_input, read_stream
from backyfs.hints import parse_hints
from backyfs.reports.backup import as_object, facts
from backyfs.sources.change import ChangeKind
from backyfs.sources.registry import open_source
from backyfs.text import human_size

if TYPE_CHECKING:
    from datetime import datetime

    from backyfs.cli.invocation import Invocation
    from backyfs.model import RequestCounts, Version
    from backyfs.reports.values import Object

_MAX_HINTS = 1 << 30  # bytes: what rbd lists of an image of 64 TiB of which every object changed


@click.command()
@click.argument("source")
@click.argument("name", callback=stored_text)
@click.option(
    "-s",
    "--snapshot-name",
    callback=stored_text,
    default="",
    metavar="TEXT",
    help="Name of the snapshot that is backed up.",
)
@click.option(
    "-r",
    "--rbd",
    "--hints",
    "hints",
    cls=OptionalValue,
    metavar="FILE",
    help="Read only what changed. FILE is the output of `rbd diff --format=json`; - is standard input.",
)
@click.option(
    "-f",
    "--from-version",
    cls=OptionalValue,
    callback=stored_text,
    metavar="VERSION",
    help="The version that the hints are relative to; without it, everything not listed is taken as zeros.",
)
@click.option(
    "-c",
    "--continue-version",
    cls=OptionalValue,
    callback=stored_text,
    metavar="VERSION",
    help="Continue an interrupted backup of the same, unchanged image.",
)
@click.option(
    "-t",
    "--tag",
    "tags",
    cls=OptionalValue,
    type=TAGS,
    metavar="A,B",
    help="Tags of the version. Default: b_daily, plus b_weekly and b_monthly when due.",
)
@click.option(
    "--due",
    is_flag=True,
    help="Also add the tags daily, weekly and monthly, where these schedulers are configured and NAME is due for them.",
)
@click.option(
    "-e",
    "--expire",
    cls=OptionalValue,
    type=MOMENT,
    metavar="DATE",
    help="When the version expires: a date, or +30d for in 30 days.",
)
@click.option(
    "--read-holes",
    is_flag=True,
    help="Also read the holes of a file: some file systems report holes where there is data.",
)
@click.pass_obj
@hooked("backup", "source", "name", "snapshot_name")
def command(
    invocation: Invocation,
    source: str,
    name: str,
    snapshot_name: str,
    hints: str | None,
    from_version: str | None,
    continue_version: str | None,
    tags: tuple[str, ...] | None,
    expire: datetime | None,
    *,
    read_holes: bool,
    due: bool,
) -> None:
    """Back up SOURCE as a new version of NAME.

    SOURCE is a path, file://PATH, a block device, or null://SIZE for test data. Do not let it change while it is
    read: if it is in use, back up a snapshot. If it shrinks or grows, the exit status is 7; other signs of change are
    warnings. With -m the uid of the version is printed as soon as it is known, and at the end.

    With --hints and --from-version, only what changed since that version is read. A sample of the other blocks is
    compared with the source all the same; if one differs, nothing is stored, and the exit status is 5.
    """
    changes = None if hints is None else parse_hints(_read_hints(hints), hints)

    def report_version(version: Version) -> None:
        invocation.add_facts(uid=version.uid)
        if invocation.form is OutputForm.PIPE:
            announce(version.uid)

    with invocation.open_repository() as repository, invocation.control() as control:
        report = backup(
            repository,
            partial(open_source, source, repository.config, read_holes=read_holes),
            BackupRequest(
                name=name,
                snapshot_name=snapshot_name,
                tags=tags,
                schedulers=usual_schedulers(repository.config) if due else (),
                expire_at=expire,
                hints=changes,
                base=None if from_version is None else named_version(repository, from_version),
                continued=None if continue_version is None else named_version(repository, continue_version),
            ),
            control=control,
            announce=report_version,
        )
        requests = repository.requests
        value = as_object(report, repository.block_size, requests)
        invocation.record(repository, value)
    invocation.add_facts(**facts(report))
    found = Counter(warning.kind for warning in report.warnings)
    invocation.source_warnings.update({kind.value: found[kind] for kind in ChangeKind})
    _print(invocation, report, value, requests)


def _read_hints(path: str) -> bytes:
    try:
        return read_stream(sys.stdin.buffer, _MAX_HINTS) if path == "-" else read_input(path, _MAX_HINTS)
    except OSError as error:
        raise HintsError(f"{path} cannot be read: {error.strerror}; name a file with hints") from error


def _print(invocation: Invocation, report: BackupReport, value: Object, requests: RequestCounts) -> None:
    counts = report.statistics
    if invocation.form is OutputForm.PIPE:
        click.echo(report.version.uid)
    elif invocation.form is OutputForm.JSON:
        print_object(value)
    else:
        rate = int(report.version.size_bytes / max(report.duration_s, 0.001))
        click.echo(
            f"version {report.version.uid} of {printable(report.version.name)}: "
            f"{human_size(report.version.size_bytes)} in {report.duration_s:.1f} s ({human_size(rate)}/s)"
        )
        click.echo(
            f"new {human_size(counts.bytes_written)} (stored as {human_size(counts.bytes_stored)}), "
            f"known {human_size(counts.bytes_deduplicated)}, zeros {human_size(counts.bytes_sparse)}"
        )
        for line in requests_lines(requests):
            click.echo(line)
