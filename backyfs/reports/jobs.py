"""Commands that are running, and commands that have ended."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from backyfs.reports.values import seconds
from backyfs.work.pace import progress_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backyfs.engine.versions.jobs import EndedJob, RunningJob
    from backyfs.reports.values import Row

COLUMNS = ("host", "pid", "command", "started", "beat", "progress", "versions")
# Of commands that have ended: column -> field. The columns after these five are shown if they are asked for.
ENDED = {
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
ENDED_COLUMNS = tuple(ENDED)[:5]


def as_rows(jobs: Iterable[RunningJob]) -> list[Row]:
    """Return a row for each running command."""
    return [_running_row(running) for running in jobs]


def ended_as_rows(runs: Iterable[EndedJob], *, with_reports: bool) -> list[Row]:
    """Return a row for each command that has ended; `with_reports` adds what it printed with --json."""
    rows = []
    for run in runs:
        row = _ended_row(run)
        if with_reports:
            row["report"] = None if run.report is None else json.loads(run.report)
        rows.append(row)
    return rows


def _running_row(running: RunningJob) -> Row:
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
        "elapsed_s": None if progress is None else seconds(progress.elapsed_s),
        "writes_blobs": running.writes_blobs,
    }


def _ended_row(run: EndedJob) -> Row:
    return {
        "kind": run.kind,
        "command": run.command,
        "names": run.names,
        "host": run.host,
        "started": run.started_at,
        "ended": run.ended_at,
        "duration_s": seconds(run.duration_s),
        "outcome": run.outcome.value,
        "exit_status": run.exit_status,
        "error_class": run.error_class,
        "error": run.error,
    }
