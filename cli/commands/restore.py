"""`backyfs restore`: write a version to a file, a block device or standard output."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import version_argument
from backyfs.cli.failures import raise_all
from backyfs.cli.hooked import hooked
from backyfs.cli.invocation import OutputForm
from backyfs.cli.options import OptionalValue
from backyfs.cli.output import print_object
from backyfs.cli.requests import requests_lines
from backyfs.cli.sizes import Size
from backyfs.cli.stdout import drop_stdout
from backyfs.cli.text import printable
from backyfs.engine.restore.restore import RestoreOptions, RestoreReport, restore
from backyfs.engine.versions.named import named_version
from backyfs.errors import ReaderGoneError
from backyfs.model import VersionStatus
from backyfs.reports.restore import as_object
from backyfs.targets.registry import STDOUT
from backyfs.text import human_size

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation
    from backyfs.model import RequestCounts
    from backyfs.reports.values import Object

_log = logging.getLogger("backyfs.cli")


@click.command()
@version_argument
@click.argument("target")
@click.option(
    "-s",
    "--sparse",
    is_flag=True,
    help="Skip holes: whatever a device, or a file with --differential, already holds there is left in place. Without "
    "it holes are overwritten with zeros. A file that is written from scratch is sparse either way.",
)
@click.option("-f", "--force", is_flag=True, help="Overwrite TARGET if it exists.")
@click.option(
    "-c",
    "--continue-from",
    cls=OptionalValue,
    type=click.IntRange(min=0),
    metavar="BLOCK",
    help="Begin with block number BLOCK, which an interrupted restore prints. TARGET exists, and everything before "
    "that block is left in place; --force is not needed. From block 0, TARGET can also be new.",
)
@click.option(
    "--differential",
    is_flag=True,
    help="Read TARGET, which exists, and write only the blocks that differ; --force is not needed. Equal blocks are "
    "not read from the storage.",
)
@click.option(
    "--verify", is_flag=True, help="At the end, read all of TARGET back from the disk and compare it with VERSION."
)
@click.option(
    "--no-sync",
    is_flag=True,
    help="Do not wait until everything is on the disk: a full disk or a power failure can still lose it.",
)
@click.option(
    "--offset",
    type=Size(),
    metavar="SIZE",
    help="Restore only the part of the image that begins here (bytes, or with a unit: 1M), to the same place in "
    "TARGET. The rest of TARGET is not changed. Standard output gets this part alone.",
)
@click.option(
    "--length", type=Size(), metavar="SIZE", help="Length of that part. Default: to the end of the image."
)
@click.pass_obj
@hooked("restore", "version", "target")
def command(
    invocation: Invocation,
    version: str,
    target: str,
    *,
    sparse: bool,
    force: bool,
    continue_from: int | None,
    differential: bool,
    verify: bool,
    no_sync: bool,
    offset: int | None,
    length: int | None,
) -> None:
    """Write VERSION to TARGET.

    TARGET is a path, file://PATH, a block device that is not in use, null:// (nowhere, for measuring), or - for
    standard output, where nothing else is printed then.

    Blocks are checked before they are written. The ranges of damaged blocks are listed, everything else is restored,
    and the exit status is 20. On standard output, damaged blocks are replaced by zeros.
    """
    options = RestoreOptions(
        replace=force,
        sparse=sparse,
        continue_from=continue_from,
        differential=differential,
        verify=verify,
        syncs=not no_sync,
        offset=offset,
        length=length,
    )
    if target == STDOUT:  # a progress bar would get in the way of a program that reads both
        invocation = dataclasses.replace(invocation, show_progress=False)
    with invocation.open_repository() as repository, invocation.control() as control:
        wanted = named_version(repository, version)
        invocation.add_facts(uid=wanted.uid, size_bytes=wanted.size_bytes)
        if wanted.status is VersionStatus.INVALID:
            _log.warning(
                "version %s is invalid: blocks of it were found damaged; everything else is restored", wanted.uid
            )
        try:
            report = restore(repository, wanted, target, options=options, control=control)
        except ReaderGoneError:
            drop_stdout()
            return
        requests = repository.requests
        value = as_object(report, requests)
        invocation.record(repository, value, report.errors)
    invocation.add_facts(bytes_written=report.bytes_written)
    _print(invocation, report, value, requests)
    raise_all(report.errors)


def _print(invocation: Invocation, report: RestoreReport, value: Object, requests: RequestCounts) -> None:
    for damage in report.damaged:
        _log.error("bytes %d to %d not restored: %s", damage.start, damage.stop, damage.reason)
    for damage in report.differing:
        _log.error("bytes %d to %d differ: %s", damage.start, damage.stop, damage.reason)
    if invocation.form is OutputForm.JSON and report.target != STDOUT:
        print_object(value)
    elif invocation.form is OutputForm.TABLE:
        for line in (_summary(report), *requests_lines(requests)):
            click.echo(line, err=report.target == STDOUT)


def _summary(report: RestoreReport) -> str:
    size_bytes = len(report.part)
    rate = int(size_bytes / max(report.duration_s, 0.001))
    place = "standard output" if report.target == STDOUT else printable(report.target)
    what = f"version {report.version.uid}"
    if size_bytes < report.version.size_bytes:
        what = f"bytes {report.part.start} to {report.part.stop} of {what}"
    text = (
        f"{what} restored to {place}: "
        f"{human_size(size_bytes)} in {report.duration_s:.1f} s ({human_size(rate)}/s)"
    )
    if report.bytes_equal:
        text += f"\nwritten {human_size(report.bytes_written)}, already there {human_size(report.bytes_equal)}"
    if report.is_verified and not (report.damaged or report.differing):
        text += "\nverified: the target matches"
    return text
