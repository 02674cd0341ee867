"""`backyfs jobs`: list the commands that run, on all hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.output import Row, chosen_columns, fields_option, print_rows
from backyfs.cli.stdout import run_for_output
from backyfs.metadata.records.jobs import Job, list_live_jobs, this_process

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation

_COLUMNS = ("host", "pid", "command", "started", "beat", "progress", "versions")


@click.command()
@fields_option
@click.pass_obj
@run_for_output
def command(invocation: Invocation, fields: str | None) -> None:
    """List the commands that run on this repository, on all hosts, the oldest first.

    `started` is in UTC; `beat` is the number of seconds since the last heartbeat, which comes every 10 s. A command
    that has been silent for 60 s is removed by the next one that needs to know whether it is dead. `versions` are those
    that it keeps from being removed. Commands that only read metadata, such as this one, are not listed.
    """
    columns = chosen_columns(fields, _COLUMNS)
    with invocation.open_repository() as repository, repository.database.read() as connection:
        running = list_live_jobs(connection, this_process())
    print_rows(invocation, [_row(job) for job in running], columns)


def _row(job: Job) -> Row:
    return {
        "host": job.host,
        "pid": job.pid,
        "command": job.command,
        "started": job.started_at,
        "beat": round(job.beat_age_s),
        "progress": job.progress,
        "versions": job.versions,
    }
