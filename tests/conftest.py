"""What all tests share.

In continuous integration (CI=true) everything can run, so a test that is skipped there is one that nobody
runs: it counts as failed. Elsewhere skips stay skips.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

_IN_CI = os.environ.get("CI") == "true"


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Generator[None, None, None]:
    """Take away what a command that ran in this process has set up for its log."""
    yield
    log = logging.getLogger("backyfs")
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.setLevel(logging.NOTSET)
    log.propagate = True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Refuse the skip of a test; an expected failure, which pytest also calls skipped, stays one."""
    report = yield
    if not hasattr(report, "wasxfail"):
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Refuse the skip of a whole module."""
    report = yield
    _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if _IN_CI and report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped where everything has to run (CI=true): {reason}"
