"""`backyfs backup`: back up an image or block device as a new version."""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import click

from backyfs.cli.commands.ls import version_row
from backyfs.cli.hooked import hooked
from backyfs.cli.invocation import OutputForm
from backyfs.cli.moments import MOMENT
from backyfs.cli.options import OptionalValue
from backyfs.cli.output import json_object, print_json
from backyfs.cli.schedules import usual_schedulers
from backyfs.cli.sizes import human_size
from backyfs.cli.stdout import announce
from backyfs.cli.tags import TAGS
from backyfs.cli.text import printable, stored_text
from backyfs.engine.backup.backup import BackupReport, BackupRequest, backup
from backyfs.errors import HintsError
from backyfs.files import read_input, read_stream
from backyfs.hints import parse_hints
from backyfs.metadata.records.versions import find_version
from backyfs.sources.change import ChangeKind
from backyfs.sources.registry import open_source

if TYPE_CHECKING:
    from datetime import datetime

    from backyfs.cli.invocation import Invocation
    from backyfs.model import Version

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
    help="Read only what changed: the output of `rbd diff --format=json`; - is the standard input.",
)
@click.option(
    "-f",
    "--from-version",
    cls=OptionalValue,
    callback=stored_text,
    metavar="VERSION",
    help="The version since which the hints tell the changes; without it, what they do not name is zeros.",
)
@click.option(
    "-c",
    "--continue-version",
    cls=OptionalValue,
    callback=stored_text,
    metavar="VERSION",
    help="Go on with a backup that was interrupted, of the same image in the same state.",
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
    help="Also give it the tags daily, weekly and monthly, where these schedulers are configured and NAME is due for "
    "them.",
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
    help="Read the holes of a file, too: some file systems report holes where there is data.",
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

    With --hints and --from-version only what changed since that version is read. Some of the other blocks are
    compared with the source all the same; if one differs nothing is stored, and the exit status is 5.
    """
    changes = None if hints is None else parse_hints(_read_hints(hints), hints)

    def tell(version: Version) -> None:
        invocation.add_facts(uid=version.uid)
        if invocation.form is OutputForm.PIPE:
            announce(version.uid)

    with invocation.open_repository() as repository, invocation.control() as control:
        with repository.database.read() as connection:
            base = None if from_version is None else find_version(connection, from_version)
            continued = None if continue_version is None else find_version(connection, continue_version)
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
                base=base,
                continued=continued,
            ),
            control=control,
            announce=tell,
        )
        value = _value(report, repository.block_size)
        invocation.record(repository, value)
    _add_facts(invocation, report)
    _print(invocation, report, value)


def _add_facts(invocation: Invocation, report: BackupReport) -> None:
    counts = report.statistics
    invocation.add_facts(
        size_bytes=report.version.size_bytes,
        bytes_read=counts.bytes_read,
        bytes_written=counts.bytes_written,
        bytes_stored=counts.bytes_stored,
    )
    found = Counter(warning.kind for warning in report.warnings)
    invocation.source_warnings.update({kind.value: found[kind] for kind in ChangeKind})


def _read_hints(path: str) -> bytes:
    try:
        return read_stream(sys.stdin.buffer, _MAX_HINTS) if path == "-" else read_input(path, _MAX_HINTS)
    except OSError as error:
        raise HintsError(f"{path} cannot be read: {error.strerror}; name a file with hints") from error


def _value(report: BackupReport, block_size: int) -> dict[str, object]:
    counts = report.statistics
    fields = {name: getattr(counts, name) for name in type(counts).__slots__}
    return json_object(
        {**version_row(report.version, block_size), **fields, "duration_s": round(report.duration_s, 3)},
        warnings=[{"kind": warning.kind.value, "text": warning.text} for warning in report.warnings],
    )


def _print(invocation: Invocation, report: BackupReport, value: dict[str, object]) -> None:
    counts = report.statistics
    if invocation.form is OutputForm.PIPE:
        click.echo(report.version.uid)
    elif invocation.form is OutputForm.JSON:
        print_json(value)
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
