"""How the blocks of two versions compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backyfs.engine.versions.diff import DiffRun
    from backyfs.reports.values import Row


def as_rows(runs: Iterable[DiffRun]) -> list[Row]:
    """Return a row for each run of blocks that compare alike."""
    return [{"first": run.first, "count": run.count, "state": run.state.value} for run in runs]
