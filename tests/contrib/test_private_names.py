"""Tests do not replace private names of the program, because every change inside a module would break them.

What a test needs to change is passed in: limits of a repository (`tests.support.repositories.with_limits`), a
parameter with a default, or a storage or database that acts before a call (`tests.support.storages`).
"""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def replaced_names(source: str) -> list[str]:
    """Return the private names that a source replaces: by `setattr`, pytest's or the built-in, or by an assignment."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _name_of(node.func) == "setattr":
            names = [one.value for one in node.args[:2] if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            found += names[:1]
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _name_of(node.value) != "self":
            found.append(node.attr)
    return [name for name in found if name.rpartition(".")[2].startswith("_") and not name.endswith("__")]


def _name_of(node: ast.expr) -> str | None:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None


def test_no_test_replaces_a_private_name() -> None:
    found = {str(file.relative_to(TESTS)): replaced_names(file.read_text("utf-8")) for file in TESTS.rglob("*.py")}
    assert {file: names for file, names in found.items() if names} == {}


def test_the_rule_itself_finds_violations() -> None:
    source = "patch.setattr(module, '_LIMIT', 2)\npatch.setattr('a.b._c', 1)\nsetattr(one, '_f', g)\nmodule._TOO = 3\n"
    assert replaced_names(source) == ["_LIMIT", "a.b._c", "_f", "_TOO"]
    assert replaced_names("patch.setattr(module, 'open', f)\nself._own = module._read\n") == []
