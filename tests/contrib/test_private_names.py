"""Tests replace no private names of the program: every change inside a module would break them.

What a test needs to change is passed in: limits of a repository (`tests.support.repositories.with_limits`), or a
storage or database that acts before a call (`tests.support.storages`). `LEFT` is what is still to be changed.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

LEFT = {
    "cli/test_version_commands.py": 1,
    "contract/test_keys.py": 2,
    "contract/test_reports.py": 2,
    "contract/test_storage.py": 1,
    "fault/test_killed_rekey.py": 1,
    "fault/test_killed_rotation.py": 1,
    "mount/test_attach.py": 1,
    "mount/test_operations.py": 10,
    "mount/test_standing.py": 2,
    "unit/test_full_cleanup.py": 1,
    "unit/test_key_slots.py": 2,
    "unit/test_overlay.py": 1,
}


def replaced_names(source: str) -> list[str]:
    """Return the private names that a source replaces by `monkeypatch.setattr`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            names = [one.value for one in node.args[:2] if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            found += [name for name in names[:1] if name.rpartition(".")[2].startswith("_") and not name.endswith("__")]
    return found


def test_no_test_replaces_a_private_name() -> None:
    found = Counter[str]()
    for file in sorted(TESTS.rglob("*.py")):
        count = len(replaced_names(file.read_text(encoding="utf-8")))
        if count:
            found[str(file.relative_to(TESTS))] = count
    assert dict(found) == LEFT


def test_the_rule_itself_finds_them() -> None:
    source = "patch.setattr(module, '_LIMIT', 2)\npatch.setattr('a.b._c', 1)\npatch.setattr(module, 'open', f)\n"
    assert replaced_names(source) == ["_LIMIT", "a.b._c"]
