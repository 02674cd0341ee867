"""Generated pages are up to date with the program or schema that they come from."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import jsonschema
import pytest

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
DECISIONS = ROOT / "docs" / "internals" / "adr"


@pytest.mark.parametrize(("script", "page"), [("commands_page.py", "commands.md"), ("json_page.py", "json.md")])
def test_a_page_equals_the_output_of_its_script(script: str, page: str) -> None:
    spec = importlib.util.spec_from_file_location(script.removesuffix(".py"), ROOT / "contrib" / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (REFERENCE / page).read_text(encoding="utf-8")
    assert text == "\n".join(module.page()) + "\n", f"run contrib/{script} > docs/reference/{page}"


def test_the_tests_that_pages_refer_to_exist() -> None:
    known: dict[str, str] = {}
    missing, count = [], 0
    for page in (ROOT / "docs").rglob("*.md"):
        for file, name in re.findall(r"`(tests/[a-z0-9_/]+\.py)(?:::(test_[a-z0-9_]+))?`", page.read_text()):
            path = ROOT / file
            text = known.setdefault(file, path.read_text() if path.exists() else "")
            count += 1
            if not text or (name and f"def {name}(" not in text):
                missing.append((page.name, file, name))
    assert missing == []
    assert count > 50


@pytest.mark.parametrize("page", sorted(DECISIONS.glob("0*.md")), ids=lambda page: page.name)
def test_a_decision_has_a_number_a_date_a_status_and_three_sections(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    number = int(page.name[:4])
    superseded = r"superseded by \[ADR \d+\]\([^)]+\)"
    head = rf"# {number}\. .+\n\n- Date: \d{{4}}-\d\d-\d\d.*\n- Status: (proposed|accepted|{superseded})\n"
    assert re.match(head, text)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
    assert len(text.splitlines()) <= 25
    assert f"({page.name})" in (DECISIONS / "README.md").read_text(encoding="utf-8")


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = sorted(int(page.name[:4]) for page in DECISIONS.glob("0*.md"))
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_schema_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads((REFERENCE / "output.schema.json").read_text()))
