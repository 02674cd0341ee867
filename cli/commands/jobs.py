"""`backyfs jobs`: list the commands that run, on all hosts, or those that have ended."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from backyfs.cli.invocation import OutputForm
from backyfs.cli.options import OptionalValue
from backyfs.cli.output import Row, chosen_columns, fields_option, print_labelled, print_rows
from backyfs.cli.stdout import run_for_output
from backyfs.errors import UsageError
from backyfs.metadata.records.jobs import RunningJob, list_running_jobs, this_process
from backyfs.metadata.records.runs import RunRecord, list_runs
from backyfs.work.pace import progress_text, short_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.cli.invocation import Invocation

_COLUMNS = ("host", "pid", "command", "started", "beat", "progress", "versions")
# Of those that have ended: column -> field. The columns after these five are shown if they are asked for.
_ENDED = {
    "ended": "ended",
    "duration": "duration_s",
    "command": "command",
    "outcome": "outcome",
    "error": "error",
    "status": "exit_status",
    "kind": "kind",
    "names": "names",
    "host": "host",
    "started": "started",
}
_ENDED_COLUMNS = tuple(_ENDED)[:5]


@click.command()
@fields_option
@click.option("--ended", is_flag=True, help="List the commands that have ended, the newest first.")
@click.option(
    "-l", "--limit", cls=OptionalValue, type=click.IntRange(min=0), metavar="N", help="With --ended: the newest N only."
)
@click.pass_obj
@run_for_output
def command(invocation: Invocation, fields: str | None, limit: int | None, *, ended: bool) -> None:
    """List the commands that run on this repository, on all hosts, the oldest first.

    `started` is in UTC; `beat` is the number of seconds since the last heartbeat, which comes every 10 s. A command
    that has been silent for 60 s is removed by the next one that needs to know whether it is dead. `versions` are those
    that it keeps from being removed. Commands that only read metadata, such as this one, are not listed.

    With --ended: the commands that have ended in the last 90 days, up to 10,000. `outcome` is succeeded, failed,
    interrupted, killed (its process ended without recording how) or lost (taken for dead by another command). For the
    last two, `ended` is when the command was last heard from. --fields also takes status (the exit status), kind,
    names, host and started.
    """
    if limit is not None and not ended:
        raise UsageError("--limit is about commands that have ended; add --ended")
    if ended:
        columns = _ENDED_COLUMNS if fields is None else chosen_columns(fields, tuple(_ENDED))
        _print_ended(invocation, columns, limit)
        return
    columns = chosen_columns(fields, _COLUMNS)
    with invocation.open_repository() as repository, repository.database.read() as connection:
        running = list_running_jobs(connection, this_process())
    print_rows(invocation, [_row(one) for one in running], columns)


def _print_ended(invocation: Invocation, columns: Sequence[str], limit: int | None) -> None:
    as_json = invocation.form is OutputForm.JSON
    with invocation.open_repository() as repository, repository.database.read() as connection:
        ended = list_runs(connection, limit=limit, with_reports=as_json)
    rows = [_ended_row(run) for run in ended]
    if as_json:
        reports = (None if run.report is None else json.loads(run.report) for run in ended)
        rows = [{**row, "report": report} for row, report in zip(rows, reports, strict=True)]
    elif invocation.form is OutputForm.TABLE:
        rows = [{**row, "duration_s": short_time(run.duration_s)} for row, run in zip(rows, ended, strict=True)]
    print_labelled(invocation, rows, _ENDED, columns, sizes=())


def _row(running: RunningJob) -> Row:
    job = running.job
    progress = running.progress
    return {
        "host": job.host,
        "pid": job.pid,
        "command": job.command,
        "started": job.started_at,
        "beat": round(job.beat_age_s),
        "progress": progress_text(progress),
        "versions": job.versions,
        "kind": running.kind,
        "names": running.names,
        "step": None if progress is None else progress.label,
        "done": None if progress is None else progress.done,
        "total": None if progress is None else progress.total or None,
        "unit": None if progress is None else progress.unit.value,
        "elapsed_s": None if progress is None else round(progress.elapsed_s, 3),
        "writes_blobs": running.writes_blobs,
    }


def _ended_row(run: RunRecord) -> Row:
    return {
        "kind": run.kind,
        "command": run.command,
        "names": run.names,
        "host": run.host,
        "started": run.started_at,
        "ended": run.ended_at,
        "duration_s": round(run.duration_s, 3),
        "outcome": run.outcome.value,
        "exit_status": run.exit_status,
        "error_class": run.error_class,
        "error": run.error,
    }
