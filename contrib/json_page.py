"""Print docs/reference/json.md: the fields of every command's JSON output, from docs/reference/output.schema.json.

    .venv/bin/python contrib/json_page.py > docs/reference/json.md

A test fails if the page is not what the schema says.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).resolve().parents[1] / "docs" / "reference" / "output.schema.json"
HEAD = """# JSON output

`backyfs --json COMMAND` prints one JSON value: an object, or a list if there can be several. Times are in UTC, in the
form `2026-11-23T13:54:04.452849Z`. Sizes are in bytes. Later releases may add fields, but do not remove one or change
its meaning. An error is still one line on stderr, with an [exit status](exit-codes.md). A command that fails before it
has done anything prints no JSON.

`contrib/json_page.py` generates this page from [output.schema.json](output.schema.json) (JSON Schema 2020-12, one entry
of `$defs` for each command). `mount`, `umount`, `export` and `completion` print no JSON.
"""


def page() -> Iterator[str]:
    """Yield the lines of the page."""
    definitions: dict[str, dict[str, Any]] = json.loads(SCHEMA.read_text(encoding="utf-8"))["$defs"]
    yield from HEAD.splitlines()
    for name, definition in definitions.items():
        yield ""
        yield f"## {name}"
        yield ""
        yield f"{definition['description'][0].upper()}{definition['description'][1:]}."
        yield from fields(definition)


def fields(definition: dict[str, Any]) -> Iterator[str]:
    """Yield the table of the fields of an object, or of the objects of a list."""
    described = definition.get("items", definition)
    if "$ref" in described:
        other = described["$ref"].rpartition("/")[2]
        yield ""
        yield f"{'A list of' if 'items' in definition else 'The same as'} [{other}](#{other})."
        return
    yield ""
    yield f"{'A list of objects:' if 'items' in definition else 'An object:'}"
    yield ""
    yield "| field | type | meaning |"
    yield "| --- | --- | --- |"
    for name, field in described["properties"].items():
        yield f"| `{name}` | {kind(field)} | {field['description']} |"


def kind(field: dict[str, Any]) -> str:
    """Return the type of a field in words."""
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    types = field["type"] if isinstance(field["type"], list) else [field["type"]]
    words = ["time" if name == "string" and field.get("format") == "date-time" else name for name in types]
    if "items" in field:
        items = field["items"]
        words = [f"list of {'objects: ' + ', '.join(items['properties']) if 'properties' in items else 'strings'}"]
    return " or ".join(words)


if __name__ == "__main__":
    sys.stdout.write("\n".join(page()) + "\n")
