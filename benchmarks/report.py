"""Render results: one table for people, one JSON document for later comparison."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.figures import Result, Samples

HEADINGS = ("measure", "of", "ours", "reference", "ratio", "target", "reached", "")
UNSTEADY = 1.5
VERDICTS = {True: "yes", False: "NO", None: ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A measure that could not be taken."""

    measure: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All results of one run."""

    machine: Mapping[str, str]
    options: Mapping[str, int]
    results: Sequence[Result]
    failures: Sequence[Failure]

    @property
    def passed(self) -> bool:
        """Whether every measure was taken and no target missed."""
        return not self.failures and all(result.reached is not False for result in self.results)


def table(report: Report) -> str:
    """Return the report as text."""
    rows = [HEADINGS, *map(_row, report.results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = ["; ".join(f"{name} {value}" for name, value in report.machine.items()), ""]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines += [f"{failure.measure}: not measured: {failure.reason}" for failure in report.failures]
    return "\n".join(lines)


def document(report: Report) -> str:
    """Return the report with every sample as JSON."""
    results = [
        {**dataclasses.asdict(result), "ratio": result.ratio, "reached": result.reached}
        for result in report.results
    ]
    content = {
        "machine": dict(report.machine),
        "options": dict(report.options),
        "results": results,
        "failures": [dataclasses.asdict(failure) for failure in report.failures],
        "passed": report.passed,
    }
    return json.dumps(content, indent=2, default=lambda value: value.value, ensure_ascii=False) + "\n"


def _row(result: Result) -> tuple[str, ...]:
    return (
        result.measure,
        result.what,
        _figure(result.ours),
        "" if result.reference is None else f"{result.reference.label}: {_figure(result.reference)}",
        "" if result.ratio is None else f"{result.ratio:.2f}",
        "" if result.target is None else str(result.target),
        VERDICTS[result.reached],
        "; ".join(filter(None, (result.note, _spread(result.ours), _spread(result.reference)))),
    )


def _spread(samples: Samples | None) -> str:
    """Return how far apart the runs were, if so far that the best one proves little."""
    if samples is None or min(samples.values) <= 0 or max(samples.values) < UNSTEADY * min(samples.values):
        return ""
    least, most = min(samples.values), max(samples.values)
    return f"unsteady: {samples.label} {least:,.4g} to {most:,.4g}"


def _figure(samples: Samples) -> str:
    digits = 0 if samples.value >= 100 or samples.value == int(samples.value) else 2
    return f"{samples.value:,.{digits}f} {samples.unit}"
