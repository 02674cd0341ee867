"""`backyfs forget`: remove the versions that no schedule needs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from backyfs.cli.failures import raise_all
from backyfs.cli.hooked import hooked
from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import chosen_columns, fields_option, print_rows
from backyfs.cli.remedies import render_error
from backyfs.cli.schedules import schedulers_option
from backyfs.cli.stdout import expect_printed
from backyfs.cli.text import stored_text
from backyfs.engine.versions.forget import ForgetOutcome, forget
from backyfs.engine.versions.schedules import keeping_schedulers
from backyfs.errors import BackyfsError
from backyfs.reports.forget import COLUMNS, as_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.cli.invocation import Invocation
    from backyfs.engine.versions.forget import ForgetResult


@click.command("forget")
@click.argument("name", callback=stored_text, required=False)
@schedulers_option
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
@click.option("--force", is_flag=True, help="Also remove versions younger than disallow_rm_when_younger_than_days.")
@fields_option
@click.pass_obj
@hooked("forget", "name", "dry_run")
def command(
    invocation: Invocation,
    name: str | None,
    schedulers: Sequence[str] | None,
    fields: str | None,
    *,
    dry_run: bool,
    force: bool,
) -> None:
    """Remove the versions of all names, or of NAME, that no scheduler needs, and show why each is kept or removed.

    A scheduler needs the newest `keep` valid versions that carry its name as a tag. Versions are also kept if they are
    protected, expire in the future, or carry the tag of another scheduler of the configuration or no scheduler's tag at
    all. So is the newest valid version of each name. The exit status is 4 if a version that should have been removed is
    in use or too recent.
    """
    columns = chosen_columns(fields, COLUMNS)
    done: list[ForgetResult] = []
    try:
        with invocation.open_repository() as repository, invocation.control(is_quiet=True) as control:
            forgotten = forget(
                repository,
                keeping_schedulers(repository.config, schedulers),
                name=name,
                dry_run=dry_run,
                force=force,
                now=datetime.now(UTC),
                control=control,
                announce=done.append,
            )
            refusals = [each.refusal for each in forgotten if each.refusal is not None]
            invocation.record(repository, as_rows(forgotten, render_error), refusals)
    except (BackyfsError, KeyboardInterrupt):
        if done:
            _print(invocation, done, columns, dry_run=False)
        raise
    _print(invocation, forgotten, columns, dry_run=dry_run)
    if dry_run:
        expect_printed()
    raise_all(refusals)


def _print(
    invocation: Invocation, forgotten: Sequence[ForgetResult], columns: Sequence[str], *, dry_run: bool
) -> None:
    print_rows(invocation, as_rows(forgotten, render_error), columns)
    if invocation.form is OutputForm.TABLE:
        click.echo(_summary(forgotten, dry_run=dry_run))


def _summary(forgotten: Sequence[ForgetResult], *, dry_run: bool) -> str:
    counts = {outcome: sum(each.outcome is outcome for each in forgotten) for outcome in ForgetOutcome}
    kept, removed, refused = counts[ForgetOutcome.KEPT], counts[ForgetOutcome.REMOVED], counts[ForgetOutcome.REFUSED]
    text = f"{removed} {'would be removed' if dry_run else 'removed'}, {kept} kept"
    return f"{text}, {refused} refused" if refused else text
