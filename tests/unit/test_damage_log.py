"""Ranges that a command logs: it keeps as many as its report can contain."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from backyfs.cli.damage import DamageLog
from backyfs.model import DamagedRange
from tests.support.images import random_image
from tests.support.repositories import BLOCK, back_up

if TYPE_CHECKING:
    from pathlib import Path

    from backyfs.repository import Repository


@pytest.mark.parametrize(("most", "kept"), [(None, 5), (3, 3), (9, 5)])
def test_every_range_is_logged_but_only_the_first_ones_are_kept(
    repository: Repository, tmp_path: Path, caplog: pytest.LogCaptureFixture, most: int | None, kept: int
) -> None:
    version = back_up(repository, random_image(tmp_path / "image", BLOCK)).version
    ranges = [DamagedRange(start=start, stop=start + 1, reason="is missing") for start in range(5)]
    log = DamageLog(most)
    caplog.set_level(logging.ERROR)
    for damage in ranges:
        log(version, damage)
    assert log.found == [(version, damage) for damage in ranges[:kept]]
    assert [record.getMessage() for record in caplog.records if record.name == "backyfs.cli"] == [
        f"version {version.uid}: bytes {start} to {start + 1}: is missing" for start in range(5)
    ]
