"""An upgrade of the database, done or planned."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backyfs.engine.setup.upgrade import UpgradePlan, UpgradeReport
    from backyfs.reports.values import Object


def as_object(report: UpgradeReport | None) -> Object:
    """Return what was upgraded; None: nothing."""
    adopted = None if report is None else report.adopted
    return {
        "upgraded": report is not None,
        "database": None if report is None else report.database,
        "copy": None if report is None else report.copy,
        "versions": None if adopted is None else adopted.versions,
        "blocks": None if adopted is None else adopted.blocks,
        "blobs": None if adopted is None else adopted.blobs,
    }


def plan_as_object(plan: UpgradePlan | None) -> Object:
    """Return what would be upgraded; None: nothing."""
    fields = {} if plan is None else {name: getattr(plan, name) for name in plan.__slots__}
    return {"needed": plan is not None, **fields}
