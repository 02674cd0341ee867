"""`backyfs forget`: remove the versions that no schedule needs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from backyfs.cli.failures import raise_all
from backyfs.cli.hooked import hooked
from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import Row, chosen_columns, fields_option, json_rows, print_rows
from backyfs.cli.schedules import chosen_schedulers, schedulers_option
from backyfs.cli.stdout import expect_printed
from backyfs.cli.text import stored_text
from backyfs.engine.versions.forget import Outcome, forget
from backyfs.errors import BackyfsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.cli.invocation import Invocation
    from backyfs.engine.versions.forget import Forgotten

_COLUMNS = ("name", "date", "uid", "tags", "action", "reason")


@click.command("forget")
@click.argument("name", callback=stored_text, required=False)
@schedulers_option
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
@click.option("--force", is_flag=True, help="Remove versions younger than disallow_rm_when_younger_than_days, too.")
@fields_option
@click.pass_obj
@hooked("forget", "name", "dry_run")
def command(
    invocation: Invocation,
    name: str | None,
    schedulers: str | None,
    fields: str | None,
    *,
    dry_run: bool,
    force: bool,
) -> None:
    """Remove the versions of all names, or of NAME, that no scheduler needs, and show why each stays or goes.

    A scheduler needs the newest `keep` valid versions that carry its name as a tag. These stay as well: what is
    protected, expires in the future, carries the tag of another scheduler of the configuration or of none at all, and
    the newest valid version of each name. The exit status is 4 if one that was to go is in use or too young.
    """
    columns = chosen_columns(fields, _COLUMNS)
    done: list[Forgotten] = []
    try:
        with invocation.open_repository() as repository, invocation.control(is_quiet=True) as control:
            wanted = chosen_schedulers(repository.config, schedulers)
            if schedulers is None:  # in backy2 `keep: 0` turns a scheduler off; whoever means "keep none" names it
                wanted = [scheduler for scheduler in wanted if scheduler.keep]
            forgotten = forget(
                repository,
                wanted,
                name=name,
                dry_run=dry_run,
                force=force,
                now=datetime.now(UTC),
                control=control,
                announce=done.append,
            )
            refusals = [each.refusal for each in forgotten if each.refusal is not None]
            invocation.record(repository, json_rows(_rows(forgotten)), refusals[0] if refusals else None)
    except (BackyfsError, KeyboardInterrupt):
        if done:
            _print(invocation, done, columns, dry_run=False)
        raise
    _print(invocation, forgotten, columns, dry_run=dry_run)
    if dry_run:
        expect_printed()
    raise_all(refusals)


def _rows(forgotten: Sequence[Forgotten]) -> list[Row]:
    return [
        {
            "name": each.version.name,
            "date": each.version.created_at,
            "uid": each.version.uid,
            "tags": each.version.tags,
            "action": each.outcome.value,
            "reason": each.reason,
        }
        for each in forgotten
    ]


def _print(
    invocation: Invocation, forgotten: Sequence[Forgotten], columns: Sequence[str], *, dry_run: bool
) -> None:
    print_rows(invocation, _rows(forgotten), columns)
    if invocation.form is OutputForm.TABLE:
        click.echo(_summary(forgotten, dry_run=dry_run))


def _summary(forgotten: Sequence[Forgotten], *, dry_run: bool) -> str:
    counts = {outcome: sum(each.outcome is outcome for each in forgotten) for outcome in Outcome}
    text = f"{counts[Outcome.REMOVED]} {'would be removed' if dry_run else 'removed'}, {counts[Outcome.KEPT]} kept"
    return f"{text}, {counts[Outcome.REFUSED]} refused" if counts[Outcome.REFUSED] else text
