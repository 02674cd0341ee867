"""Commands on a repository of which one value is anything: a documented exit status, in bounded memory and time.

For a long run: BACKYFS_MUTATIONS=1000 .venv/bin/python -m pytest tests/fuzz/test_rows.py, or python -m tests.fuzz.rows.
"""

from __future__ import annotations

import os
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from backyfs.metadata.db.tables import metadata
from tests.fuzz.rows import fuzz, mutations

if TYPE_CHECKING:
    from pathlib import Path

MANY = int(os.environ.get("BACKYFS_MUTATIONS", "0"))
COLUMNS = sum(len(table.columns) for table in metadata.sorted_tables)


@pytest.mark.root
@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
def test_no_value_of_a_row_ends_a_command_unexpectedly(tmp_path: Path, encrypted: bool) -> None:
    assert list(fuzz(tmp_path, encrypted=encrypted, seed=int(encrypted), count=MANY or COLUMNS // 2, at_once=2)) == []


def test_every_column_is_changed_before_any_is_changed_again() -> None:
    assert len({(one.table, one.column) for one in islice(mutations(5), COLUMNS)}) == COLUMNS
