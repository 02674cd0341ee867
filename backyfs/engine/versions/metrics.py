"""Metrics of a repository for monitoring, and their text for Prometheus.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/, text, version 0.0.4. Times are in
seconds of Unix time.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backyfs.engine.versions.requests import requests_of_newest
from backyfs.metadata.db.database import Database
from backyfs.metadata.records.stats import newest_statistics
from backyfs.metadata.records.versions import list_versions
from backyfs.model import VersionStatus
from backyfs.retention import find_breaches, find_due

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from backyfs.config import Config, Scheduler
    from backyfs.model import RequestCounts, StatisticsRecord, Version

_RELEASED_AS = "backyfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMetrics:
    """A command that has ended."""

    config: str  # the file given; empty: found in one of the usual places
    command: str
    exit_status: int
    started_at: datetime
    duration_s: float
    source_warnings: Mapping[str, int] = field(default_factory=dict)  # by kind; empty: not a finished backup


@dataclass(frozen=True, slots=True, kw_only=True)
class NameMetrics:
    """The versions of one name."""

    name: str
    versions: Mapping[VersionStatus, int]
    newest: Version | None               # valid, and not dated in the future
    statistics: StatisticsRecord | None  # of its backup, if known
    requests: RequestCounts = field(default_factory=dict)  # of its backup, if known
    due: Mapping[str, bool]              # by scheduler
    breaches: Mapping[str, int]          # by scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One line of the text."""

    metric: str
    labels: Mapping[str, str]
    value: float


# Name, type and help of each metric, in the order of the text.
_METRICS = (
    ("run_exit_status", "gauge", "Exit status of the last command that wrote this file."),
    ("run_start_timestamp_seconds", "gauge", "When that command was started."),
    ("run_duration_seconds", "gauge", "How long it took."),
    ("run_source_warnings", "gauge", "Warnings of that backup that its source changed while it was read, by kind."),
    ("last_success_timestamp_seconds", "gauge", "When the newest valid backup of a name ended."),
    ("last_success_duration_seconds", "gauge", "How long that backup took."),
    ("last_success_size_bytes", "gauge", "Size of the image."),
    ("last_success_read_bytes", "gauge", "Bytes of the image that were read."),
    ("last_success_written_bytes", "gauge", "Bytes of the image that were new."),
    ("last_success_stored_bytes", "gauge", "What these took in the storage."),
    ("last_success_requests", "gauge", "Requests of that backup to an object store, by verb."),
    ("last_success_request_bytes", "gauge", "Bytes of the objects that these stored or read."),
    ("versions", "gauge", "Versions of a name, by their status."),
    ("due", "gauge", "1: a backup is due by a scheduler of the configuration."),
    ("sla_breaches", "gauge", "Breaches of the schedule of a scheduler."),
)


def repository_metrics(config: Config, now: datetime, *, known_odd_rows: Collection[str] = ()) -> list[NameMetrics]:
    """Return the metrics of the repository of a configuration, without opening it: its key may have to be typed.

    `known_odd_rows` are messages about damaged rows that were logged already.

    Raises:
        SchemaError: the database must be upgraded first, or holds no repository.
        DatabaseError: the metrics cannot be read.
    """
    with closing(Database(config.database_url)) as database:
        database.check_revision()
        database.odd_rows.messages.update(known_odd_rows)
        return collect_metrics(database, config.schedulers, now)


def collect_metrics(database: Database, schedulers: Sequence[Scheduler], now: datetime) -> list[NameMetrics]:
    """Return the metrics of each name, in order, and for each of the schedulers.

    Only the database is read, so this works even without key and storage.

    Raises:
        DatabaseError: they cannot be read.
    """
    with database.read() as connection:
        versions = list_versions(connection)
        newest = {
            version.name: version
            for version in versions
            if version.status is VersionStatus.VALID and not version.is_dated_in_the_future(now)
        }
        statistics = newest_statistics(connection, [version.uid for version in newest.values()])
        requests = requests_of_newest(connection, newest)
    counts = Counter((version.name, version.status) for version in versions)
    due = {(each.name, scheduler) for each in find_due(versions, schedulers, now) for scheduler in each.schedulers}
    breaches = Counter((breach.name, breach.scheduler) for breach in find_breaches(versions, schedulers, now))
    return [
        NameMetrics(
            name=name,
            versions={status: counts[name, status] for status in VersionStatus},
            newest=newest.get(name),
            statistics=statistics.get(newest[name].uid) if name in newest else None,
            requests=requests.get(newest[name].uid, {}) if name in newest else {},
            due={scheduler.name: (name, scheduler.name) in due for scheduler in schedulers},
            breaches={scheduler.name: breaches[name, scheduler.name] for scheduler in schedulers},
        )
        for name in sorted({version.name for version in versions})
    ]


def render_metrics(run: RunMetrics, names: Iterable[NameMetrics]) -> str:
    """Return the text that Prometheus reads. Pure."""
    by_metric: dict[str, list[Sample]] = {}
    for sample in (*_of_run(run), *(sample for name in names for sample in _of_name(name))):
        by_metric.setdefault(sample.metric, []).append(sample)
    # To Prometheus an empty label is the same as none.
    everywhere = {"config": run.config} if run.config else {}
    lines = []
    for metric, kind, help_text in _METRICS:
        if metric in by_metric:
            lines += [f"# HELP {_RELEASED_AS}_{metric} {help_text}", f"# TYPE {_RELEASED_AS}_{metric} {kind}"]
            lines += [_line(sample, everywhere) for sample in by_metric[metric]]
    return "\n".join(lines) + "\n"


def _of_run(run: RunMetrics) -> Iterator[Sample]:
    labels = {"command": run.command}
    yield Sample(metric="run_exit_status", labels=labels, value=run.exit_status)
    yield Sample(metric="run_start_timestamp_seconds", labels=labels, value=run.started_at.timestamp())
    yield Sample(metric="run_duration_seconds", labels=labels, value=run.duration_s)
    for kind, count in run.source_warnings.items():
        yield Sample(metric="run_source_warnings", labels={**labels, "kind": kind}, value=count)


def _of_name(name: NameMetrics) -> Iterator[Sample]:
    labels = {"name": name.name}
    for status, count in name.versions.items():
        yield Sample(metric="versions", labels={**labels, "status": status.value}, value=count)
    for scheduler, is_due in name.due.items():
        yield Sample(metric="due", labels={**labels, "scheduler": scheduler}, value=is_due)
    for scheduler, count in name.breaches.items():
        yield Sample(metric="sla_breaches", labels={**labels, "scheduler": scheduler}, value=count)
    if name.newest is None:
        return
    record = name.statistics
    ended_at = name.newest.created_at if record is None else record.created_at
    values: dict[str, float | None] = {
        "last_success_timestamp_seconds": ended_at.timestamp(),
        "last_success_size_bytes": name.newest.size_bytes,
    }
    if record is not None:
        values |= {
            "last_success_duration_seconds": record.duration_s,
            "last_success_read_bytes": record.bytes_read,
            "last_success_written_bytes": record.bytes_written,
            "last_success_stored_bytes": record.bytes_stored,
        }
    for metric, value in values.items():
        if value is not None:
            yield Sample(metric=metric, labels=labels, value=value)
    for verb, sent in name.requests.items():
        by_verb = {**labels, "verb": verb}
        yield Sample(metric="last_success_requests", labels=by_verb, value=sent.requests)
        yield Sample(metric="last_success_request_bytes", labels=by_verb, value=sent.bytes)


def _line(sample: Sample, everywhere: Mapping[str, str]) -> str:
    labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in {**everywhere, **sample.labels}.items())
    return f"{_RELEASED_AS}_{sample.metric}{{{labels}}} {float(sample.value)!r}"


def _escaped(value: str) -> str:
    # Prometheus rejects a whole file if any text in it is not UTF-8.
    text = value.encode(errors="replace").decode()
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
