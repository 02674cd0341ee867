"""`backyfs jobs`: list the running commands, on all hosts, or the commands that have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.invocation import OutputForm
from backyfs.cli.options import OptionalValue
from backyfs.cli.output import chosen_columns, fields_option, print_labelled, print_rows
from backyfs.cli.stdout import run_for_output
from backyfs.engine.versions.jobs import ended_jobs, running_jobs
from backyfs.errors import UsageError
from backyfs.reports.jobs import COLUMNS, ENDED, ENDED_COLUMNS, as_rows, ended_as_rows
from backyfs.work.pace import short_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.cli.invocation import Invocation

@click.command()
@fields_option
@click.option("--ended", is_flag=True, help="List the commands that have ended, the newest first.")
@click.option(
    "-l", "--limit", cls=OptionalValue, type=click.IntRange(min=0), metavar="N", help="With --ended: the newest N only."
)
@click.pass_obj
@run_for_output
def command(invocation: Invocation, fields: str | None, limit: int | None, *, ended: bool) -> None:
    """List the commands that are running on this repository, on all hosts, the oldest first.

    `started` is in UTC; `beat` is the number of seconds since the last heartbeat, which comes every 10 s. A command
    that has been silent for 60 s is removed by the next one that needs to know whether it is dead. `versions` are the
    versions that the command keeps from being removed. Commands that only read metadata, such as this one, are not
    listed.

    With --ended: the commands that have ended in the last 90 days, up to 10,000. `outcome` is succeeded, failed,
    interrupted, killed (its process ended without recording how) or lost (taken for dead by another command). For the
    last two, `ended` is when the command was last heard from. --fields also takes status (the exit status), kind,
    names, host and started.
    """
    if limit is not None and not ended:
        raise UsageError("--limit is about commands that have ended; add --ended")
    if ended:
        columns = ENDED_COLUMNS if fields is None else chosen_columns(fields, tuple(ENDED))
        _print_ended(invocation, columns, limit)
        return
    columns = chosen_columns(fields, COLUMNS)
    with invocation.open_repository() as repository:
        jobs = running_jobs(repository)
    print_rows(invocation, as_rows(jobs), columns)


def _print_ended(invocation: Invocation, columns: Sequence[str], limit: int | None) -> None:
    as_json = invocation.form is OutputForm.JSON
    with invocation.open_repository() as repository:
        runs = ended_jobs(repository, limit=limit, with_reports=as_json)
    rows = ended_as_rows(runs, with_reports=as_json)
    if invocation.form is OutputForm.TABLE:
        rows = [{**row, "duration_s": short_time(run.duration_s)} for row, run in zip(rows, runs, strict=True)]
    print_labelled(invocation, rows, ENDED, columns, sizes=())
