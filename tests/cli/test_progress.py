"""Progress in a log: an occasional line with rate and remaining time."""

from __future__ import annotations

import logging
import time

import pytest

from backyfs.cli.progress import LogProgress


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_every_half_minute_a_line_shows_rate_and_remaining_time(clock, caplog):
    caplog.set_level(logging.INFO, logger="backyfs")
    progress = LogProgress()
    progress.start("Backing up disk", 100 << 20)
    for _ in range(8):
        clock[0] += 5
        progress.advance(5 << 20)
    progress.stop()
    assert caplog.messages == [
        "Backing up disk: 30.0 MiB of 100.0 MiB (30 %), 1.0 MiB/s, about 70 s to go",
    ]


def test_short_work_is_not_logged(clock, caplog):
    progress = LogProgress()
    progress.start("x", 10)
    progress.advance(10)
    progress.stop()
    assert caplog.messages == []
