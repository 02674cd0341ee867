"""A repository, and the program called on it in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backyfs.cli.main import run
from backyfs.keys import slots
from backyfs.keys.passphrase import Cost
from tests.support.repositories import make_repository, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backyfs.repository import Repository


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "repository")


@pytest.fixture
def repository(config: Path) -> Iterator[Repository]:
    """Give the repository, open."""
    with opened(config) as repository:
        yield repository


@pytest.fixture
def call(config: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command on the repository; return status, stdout and stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        status = run(["-c", str(config), *map(str, words)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let passphrases cost nothing."""
    monkeypatch.setattr(slots, "DEFAULT_COST", Cost(memory_kib=64, passes=1, lanes=1))
