"""`backyfs cleanup`: delete what no version needs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import click

from backyfs.cli.hooked import hooked
from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import Row, json_object, print_object, print_rows
from backyfs.cli.sizes import human_size
from backyfs.cli.stdout import expect_printed
from backyfs.engine.space.cleanup import GRACE_S, cleanup, plan_cleanup
from backyfs.engine.space.fullcleanup import full_cleanup, plan_full_cleanup
from backyfs.errors import IntegrityError, StorageError, UsageError

if TYPE_CHECKING:

    from backyfs.cli.invocation import Invocation
    from backyfs.engine.space.cleanup import CleanupReport
    from backyfs.engine.space.fullcleanup import FullPlan, FullReport
    from backyfs.errors import BackyfsError
    from backyfs.metadata.upkeep.garbage import Garbage
    from backyfs.model import DamagedRange, Version
    from backyfs.repository import Repository
    from backyfs.work.run import Control

_log = logging.getLogger("backyfs.cli")


@click.command("cleanup")
@click.option(
    "-f",
    "--full",
    is_flag=True,
    help="Count all references anew and put them right first; then compare the storage with the database.",
)
@click.option(
    "-p", "--prefix", default="", metavar="DIGITS", help="With --full: look only at objects whose names begin so."
)
@click.option("-n", "--dry-run", is_flag=True, help="Show how much there is to delete, and delete nothing.")
@click.option(
    "--dangerous-force",
    is_flag=True,
    help="Delete blocks stored in the last hour as well. Running backups store theirs once more then; nothing is lost.",
)
@click.pass_obj
@hooked("cleanup", "dry_run")
def command(invocation: Invocation, *, full: bool, prefix: str, dry_run: bool, dangerous_force: bool) -> None:
    """Delete the stored blocks that no version needs any more.

    Other commands go on meanwhile, on all hosts, other cleanups as well. It can be ended at any time; the next one goes
    on. With --full it also deletes objects that the database does not know, and names what the database knows and the
    storage has not: that is marked as damaged, and the exit status is 20. See docs/operate/cleanup.md.
    """
    if prefix and not full:
        raise UsageError("--prefix is about the objects that --full looks at; give both, or none")
    if prefix and not (prefix.isascii() and prefix.isalnum()):
        raise UsageError(f"--prefix {prefix!r}: names of objects have letters and digits only; give their first ones")
    grace_s = 0 if dangerous_force else GRACE_S
    with invocation.open_repository() as repository, invocation.control() as control:
        row, lines, damaged, undeleted = (_plan if dry_run else _run)(
            repository, control, full=full, prefix=prefix, grace_s=grace_s
        )
        error = _error(damaged, undeleted)
        invocation.record(repository, json_object(row), error)
    if invocation.form is OutputForm.JSON:
        print_object(row)
    elif invocation.form is OutputForm.PIPE:
        print_rows(invocation, [row], list(row))
    else:
        for line in lines:
            click.echo(line)
    if dry_run:
        expect_printed()
    if error is not None:
        raise error


def _error(damaged: int, undeleted: int) -> BackyfsError | None:
    if damaged:
        return IntegrityError(
            f"damage in {damaged} blobs, which are marked; the ranges are listed above. Versions that have them are "
            "invalid; back up their sources anew, and keep what can still be restored"
        )
    if undeleted:
        return StorageError(
            f"{undeleted} objects could not be deleted, and everything else was; the warnings above name them and what "
            "is in the way. Run the command again after that"
        )
    return None


def _plan(
    repository: Repository, control: Control, *, full: bool, prefix: str, grace_s: float
) -> tuple[Row, list[str], int, int]:
    """Return what there is to do, as a row and as lines; nothing was marked and nothing deleted."""
    if not full:
        garbage = plan_cleanup(repository, grace_s=grace_s)
        return _garbage_row(garbage), _garbage_lines(garbage), 0, 0
    plan = plan_full_cleanup(repository, grace_s=grace_s, prefix=prefix, control=control)
    return {**_garbage_row(plan.garbage), **_plan_row(plan)}, [*_garbage_lines(plan.garbage), *_plan_lines(plan)], 0, 0


def _run(
    repository: Repository, control: Control, *, full: bool, prefix: str, grace_s: float
) -> tuple[Row, list[str], int, int]:
    """Return what was done, as a row and as lines, and how many blobs are damaged and how many could not be deleted."""
    if not full:
        report = cleanup(repository, grace_s=grace_s, control=control)
        return _cleaned_row(report, report.duration_s), _cleaned_lines(report, report.duration_s), 0, report.undeleted
    done = full_cleanup(
        repository,
        grace_s=grace_s,
        prefix=prefix,
        control=control,
        tell=_tell,
    )
    row = {**_cleaned_row(done.cleaned, done.duration_s), **_full_row(done)}
    lines = [*_cleaned_lines(done.cleaned, done.duration_s), *_full_lines(done)]
    return row, lines, done.damaged_blobs, done.cleaned.undeleted


def _tell(version: Version, damage: DamagedRange) -> None:
    _log.error("version %s: bytes %d to %d: %s", version.uid, damage.start, damage.stop, damage.reason)


def _garbage_row(garbage: Garbage) -> Row:
    return {
        "pages": garbage.pages,
        "blobs": garbage.blobs,
        "stored_bytes": garbage.stored_bytes,
        "young_blobs": garbage.young_blobs,
    }


def _garbage_lines(garbage: Garbage) -> list[str]:
    lines = [f"{garbage.blobs} blobs would be deleted, {human_size(garbage.stored_bytes)}"]
    if garbage.young_blobs:
        lines.append(f"{garbage.young_blobs} blobs were stored in the last hour and are kept for now")
    return lines


def _plan_row(plan: FullPlan) -> Row:
    return {
        "wrong_references": plan.wrong_references,
        "orphans": plan.orphans,
        "orphan_bytes": plan.orphan_bytes,
        "young_orphans": plan.young_orphans,
        "missing_blobs": plan.missing_blobs,
    }


def _plan_lines(plan: FullPlan) -> list[str]:
    return [
        f"{plan.wrong_references or 'no'} references are wrong",
        f"{plan.orphans} objects that the database does not know would be deleted, {human_size(plan.orphan_bytes)}",
        *_young_lines(plan.young_orphans),
        f"{plan.missing_blobs or 'no'} blobs seem to be missing or of another size",
    ]


def _cleaned_row(report: CleanupReport, duration_s: float) -> Row:
    return {
        "pages": report.pages,
        "blobs": report.blobs,
        "stored_bytes": report.stored_bytes,
        "duration_s": round(duration_s, 3),
    }


def _cleaned_lines(report: CleanupReport, duration_s: float) -> list[str]:
    return [f"{report.blobs} blobs deleted, {human_size(report.stored_bytes)} freed, in {duration_s:.1f} s"]


def _full_row(done: FullReport) -> Row:
    return {
        "wrong_references": done.wrong_references,
        "orphans": done.orphans,
        "orphan_bytes": done.orphan_bytes,
        "young_orphans": done.young_orphans,
        "leftovers": done.leftovers,
        "damaged_blobs": done.damaged_blobs,
        "versions_invalid": done.versions_invalid,
    }


def _full_lines(done: FullReport) -> list[str]:
    lines = [
        f"{done.wrong_references or 'no'} references were wrong",
        f"{done.orphans} of these objects were unknown to the database, {human_size(done.orphan_bytes)}",
    ]
    lines += _young_lines(done.young_orphans)
    if done.leftovers:
        lines.append(f"files that killed commands had left and that are removed: {done.leftovers}")
    return lines + [f"version {uid} is invalid now" for uid in done.versions_invalid]


def _young_lines(young_orphans: int) -> list[str]:
    if not young_orphans:
        return []
    return [f"{young_orphans} such objects are young, or those of a running command, and are kept for now"]
