"""`backyfs cleanup`: delete the stored blocks that no version needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.damage import log_damage
from backyfs.cli.failures import raise_all
from backyfs.cli.hooked import hooked
from backyfs.cli.output import print_report
from backyfs.cli.requests import requests_lines
from backyfs.cli.stdout import expect_printed
from backyfs.engine.space.cleanup import GRACE_S, cleanup, plan_cleanup
from backyfs.engine.space.fullcleanup import full_cleanup, plan_full_cleanup
from backyfs.errors import UsageError
from backyfs.reports.cleanup import as_object, full_as_object, full_plan_as_object, plan_as_object
from backyfs.text import human_size

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation
    from backyfs.engine.space.cleanup import CleanupPlan, CleanupReport
    from backyfs.engine.space.fullcleanup import FullPlan, FullReport
    from backyfs.errors import BackyfsError
    from backyfs.reports.values import Object
    from backyfs.repository import Repository
    from backyfs.work.run import Control


@click.command("cleanup")
@click.option(
    "-f",
    "--full",
    is_flag=True,
    help="First count all references again and correct them; then compare the storage with the database.",
)
@click.option(
    "-p", "--prefix", default="", metavar="DIGITS", help="With --full: look only at objects whose names begin so."
)
@click.option("-n", "--dry-run", is_flag=True, help="Show how much would be deleted, and delete nothing.")
@click.option(
    "--dangerous-force",
    is_flag=True,
    help="Also delete blocks stored in the last hour. Running backups store theirs again; nothing is lost.",
)
@click.pass_obj
@hooked("cleanup", "dry_run")
def command(invocation: Invocation, *, full: bool, prefix: str, dry_run: bool, dangerous_force: bool) -> None:
    """Delete the stored blocks that no version needs any more.

    Other commands, including other cleanups, can run at the same time on all hosts. It can be stopped at any time; the
    next cleanup continues. With --full it also deletes objects that the database does not know, and looks for objects
    that the database knows and the storage does not have: they are listed and marked as damaged, and the exit status is
    20. See docs/operate/cleanup.md.
    """
    if prefix and not full:
        raise UsageError("--prefix is about the objects that --full looks at; give both, or none")
    if prefix and not (prefix.isascii() and prefix.isalnum()):
        raise UsageError(f"--prefix {prefix!r}: names of objects have letters and digits only; give their first ones")
    grace_s = 0 if dangerous_force else GRACE_S
    with invocation.open_repository() as repository, invocation.control() as control:
        value, lines, errors = (_plan if dry_run else _run)(
            repository, control, full=full, prefix=prefix, grace_s=grace_s
        )
        invocation.record(repository, value, errors)
    print_report(invocation, value, lines, [name for name in value if name != "requests"])
    if dry_run:
        expect_printed()
    raise_all(errors)


def _plan(
    repository: Repository, control: Control, *, full: bool, prefix: str, grace_s: float
) -> tuple[Object, list[str], list[BackyfsError]]:
    """Return what would be done, as an object and as lines; nothing was marked or deleted."""
    if not full:
        garbage = plan_cleanup(repository, grace_s=grace_s)
        return plan_as_object(garbage), _garbage_lines(garbage, _age(repository)), []
    plan = plan_full_cleanup(repository, grace_s=grace_s, prefix=prefix, control=control)
    lines = [*_garbage_lines(plan.garbage, _age(repository)), *_plan_lines(plan)]
    return full_plan_as_object(plan), lines, []


def _run(
    repository: Repository, control: Control, *, full: bool, prefix: str, grace_s: float
) -> tuple[Object, list[str], list[BackyfsError]]:
    """Return what was done, as an object and as lines, and the errors that follow."""
    if not full:
        report = cleanup(repository, grace_s=grace_s, control=control)
        lines = _cleaned_lines(report, report.duration_s, _age(repository))
        value, errors = as_object(report, repository.requests), report.errors
    else:
        done = full_cleanup(repository, grace_s=grace_s, prefix=prefix, control=control, on_damage=log_damage)
        lines = [*_cleaned_lines(done.cleaned, done.duration_s, _age(repository)), *_full_lines(done)]
        value, errors = full_as_object(done, repository.requests), done.errors
    return value, [*lines, *requests_lines(repository.requests)], errors


def _age(repository: Repository) -> str:
    """Return how old a blob must be to be deleted."""
    paid_days = repository.blocks.storage.traits.paid_days
    return f"the last {paid_days} days, for which the storage is paid," if paid_days else "the last hour"


def _garbage_lines(plan: CleanupPlan, age: str) -> list[str]:
    lines = [f"{plan.blobs} blobs would be deleted, {human_size(plan.stored_bytes)}"]
    if plan.young_blobs:
        lines.append(_young_line(plan.young_blobs, age))
    return lines


def _plan_lines(plan: FullPlan) -> list[str]:
    return [
        f"{plan.wrong_references or 'no'} references are wrong",
        f"{plan.orphans} objects that the database does not know would be deleted, {human_size(plan.orphan_bytes)}",
        *_young_lines(plan.young_orphans),
        f"{plan.missing_blobs or 'no'} blobs seem to be missing or of another size",
    ]


def _cleaned_lines(report: CleanupReport, duration_s: float, age: str) -> list[str]:
    lines = [f"{report.blobs} blobs deleted, {human_size(report.stored_bytes)} freed, in {duration_s:.1f} s"]
    if report.young_blobs:
        lines.append(_young_line(report.young_blobs, age))
    return lines


def _young_line(young_blobs: int, age: str) -> str:
    return f"{young_blobs} blobs were stored in {age} and are kept for now"


def _full_lines(done: FullReport) -> list[str]:
    lines = [
        f"{done.wrong_references or 'no'} references were wrong",
        f"{done.orphans} of these objects were unknown to the database, {human_size(done.orphan_bytes)}",
        *_young_lines(done.young_orphans),
    ]
    if done.leftovers:
        lines.append(f"removed files that killed commands had left: {done.leftovers}")
    return lines + [f"version {uid} is invalid now" for uid in done.versions_invalid]


def _young_lines(young_orphans: int) -> list[str]:
    if not young_orphans:
        return []
    return [f"{young_orphans} such objects are recent, or belong to a running command, and are kept for now"]
