"""`backyfs restore`: write a version to a file, a block device or the standard output."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import version_argument
from backyfs.cli.hooked import hooked
from backyfs.cli.invocation import OutputForm
from backyfs.cli.options import OptionalValue
from backyfs.cli.output import Row, json_object, print_json
from backyfs.cli.sizes import Size, human_size
from backyfs.cli.stdout import drop_stdout
from backyfs.cli.text import printable
from backyfs.engine.restore.restore import RestoreOptions, RestoreReport, restore
from backyfs.errors import IntegrityError, ReaderGoneError
from backyfs.metadata.records.versions import find_version
from backyfs.model import VersionStatus
from backyfs.targets.registry import STDOUT

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation
    from backyfs.model import DamagedRange

_log = logging.getLogger("backyfs.cli")


@click.command()
@version_argument
@click.argument("target")
@click.option(
    "-s",
    "--sparse",
    is_flag=True,
    help="Do not write holes: a device, or a file with --differential, keeps what it has there. Without it they "
    "become zeros; a file that is written anew is sparse either way.",
)
@click.option("-f", "--force", is_flag=True, help="Overwrite TARGET if it exists.")
@click.option(
    "-c",
    "--continue-from",
    cls=OptionalValue,
    type=click.IntRange(min=0),
    metavar="BLOCK",
    help="Begin with block number BLOCK. TARGET exists and keeps what is before it; --force is not needed. A restore "
    "that was interrupted prints the number. From block 0, TARGET can also be new.",
)
@click.option(
    "--differential",
    is_flag=True,
    help="Read TARGET, which exists, and write only the blocks that differ; --force is not needed. Equal ones are not "
    "read from the storage.",
)
@click.option(
    "--verify", is_flag=True, help="Read all of TARGET back at the end, from the disk, and compare it with VERSION."
)
@click.option(
    "--no-sync",
    is_flag=True,
    help="Do not wait until everything is on the disk: a full disk or a power cut can still lose it.",
)
@click.option(
    "--offset",
    type=Size(),
    metavar="SIZE",
    help="Restore only the part of the image that begins here (bytes, or with a unit: 1M), to the same place of "
    "TARGET, the rest of which stays as it is. The standard output gets this part alone.",
)
@click.option(
    "--length", type=Size(), metavar="SIZE", help="How long that part is. Without it: to the end of the image."
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
    the standard output, where nothing else is printed then.

    Blocks are checked before they are written. Damaged ones are named with their ranges, everything else is
    restored, and the exit status is 20. On the standard output zeros stand for them.
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
    if target == STDOUT:  # a bar would stand in the way of those that read
        invocation = dataclasses.replace(invocation, show_progress=False)
    with invocation.open_repository() as repository, invocation.control() as control:
        with repository.database.read() as connection:
            wanted = find_version(connection, version)
        invocation.add_facts(uid=wanted.uid, size_bytes=wanted.size_bytes)
        if wanted.status is VersionStatus.INVALID:
            _log.warning(
                "version %s is invalid: blocks of it were found damaged; what can be restored is restored", wanted.uid
            )
        try:
            report = restore(
                repository, wanted, target, options=options, control=control
            )
        except ReaderGoneError:
            drop_stdout()
            return
        value, error = _value(report), _error(report)
        invocation.record(repository, value, error)
    invocation.add_facts(bytes_written=report.bytes_written)
    _print(invocation, report, value)
    if error is not None:
        raise error


def _value(report: RestoreReport) -> dict[str, object]:
    return json_object(
        {
            "uid": report.version.uid,
            "target": report.target,
            "size_bytes": report.version.size_bytes,
            "start": report.part.start,
            "stop": report.part.stop,
            "bytes_written": report.bytes_written,
            "bytes_equal": report.bytes_equal,
            "verified": report.is_verified and not report.differing,
            "duration_s": round(report.duration_s, 3),
        },
        damaged=_rows(report.damaged),
        differing=_rows(report.differing),
    )


def _print(invocation: Invocation, report: RestoreReport, value: dict[str, object]) -> None:
    for damage in report.damaged:
        _log.error("bytes %d to %d not restored: %s", damage.start, damage.stop, damage.reason)
    for damage in report.differing:
        _log.error("bytes %d to %d differ: %s", damage.start, damage.stop, damage.reason)
    if invocation.form is OutputForm.JSON and report.target != STDOUT:
        print_json(value)
    elif invocation.form is OutputForm.TABLE:
        click.echo(_summary(report), err=report.target == STDOUT)


def _rows(ranges: tuple[DamagedRange, ...]) -> list[Row]:
    return [{"start": damage.start, "stop": damage.stop, "reason": damage.reason} for damage in ranges]


def _summary(report: RestoreReport) -> str:
    size_bytes = len(report.part)
    rate = int(size_bytes / max(report.duration_s, 0.001))
    place = "the standard output" if report.target == STDOUT else printable(report.target)
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
        text += "\nread back, and found to be as it was written"
    return text


def _error(report: RestoreReport) -> IntegrityError | None:
    if report.differing:
        return IntegrityError(
            f"{_bytes_in(report.differing)} bytes of {report.target} were not read back as they were written; the "
            "ranges are listed above. Look at the log of the kernel, and restore to another disk"
        )
    if report.damaged:
        return IntegrityError(
            f"{_bytes_in(report.damaged)} bytes of version {report.version.uid} could not be restored; the ranges are "
            f"listed above, everything else is in {report.target}"
        )
    return None


def _bytes_in(ranges: tuple[DamagedRange, ...]) -> int:
    return sum(damage.stop - damage.start for damage in ranges)
