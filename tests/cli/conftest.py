"""A repository, and the program called on it in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backyfs.cli.main import run
from tests.support.repositories import make_repository

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "repository")


@pytest.fixture
def call(config: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command on the repository; return status, stdout and stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        status = run(["-c", str(config), *map(str, words)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
