"""What tests of single modules share: the database of a repository, and a process."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.repositories import make_repository, opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.metadata.db.database import Database


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with opened(make_repository(tmp_path_factory.mktemp("database"), encrypted=False)) as repository:
        yield repository.database


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """Give a process of this host that lives until the test ends it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()
