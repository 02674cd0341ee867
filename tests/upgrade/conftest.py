"""A reference repository that is encrypted, has tags, expiry and protection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.upgrade.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NAME = "v1-sqlite"


@pytest.fixture
def reference(tmp_path: Path) -> Reference:
    """Give it on SQLite."""
    return Reference(_NAME, tmp_path)


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reference]:
    """Give it on each engine in turn."""
    reference = Reference(_NAME, tmp_path)
    if request.param == "sqlite":
        yield reference
        return
    server = request.getfixturevalue(f"{request.param}_server")
    url = server.new_database()
    reference.move_to(url)
    yield reference
    server.drop(url)
