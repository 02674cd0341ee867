"""Print the map of the code: every module with its first line, and which wing imports which.

    make map

`tests/unit/test_layers.py` defines the floors, the wings and the rules of imports.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.unit.test_layers import MODULES, WINGS, modules_in, unit_of, wing_of


def room_of(module: str) -> str:
    """Return the wing of a module if its unit has wings, otherwise its unit."""
    unit = unit_of(module)
    return f"{unit}.{wing_of(module)}" if unit in WINGS and wing_of(module) else unit


def arrows(sources: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Return how many modules of each room import from each other room."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for module, source in sources.items():
        room = room_of(module)
        for other in {room_of(name) for name in modules_in(source)} - {room, ""}:
            found[room][other] += 1
    return {room: dict(sorted(others.items())) for room, others in sorted(found.items()) if room}


def lines(sources: Mapping[str, str]) -> Iterator[str]:
    """Yield the map."""
    room = None
    for module in sorted(sources, key=lambda module: (room_of(module), module)):
        if module.startswith("backyfs.migrations.versions"):
            continue
        if room_of(module) != room:
            room = room_of(module)
            yield f"\n{room or 'backyfs'}"
        first = (ast.get_docstring(ast.parse(sources[module])) or "").partition("\n")[0]
        yield f"    {module.removeprefix('backyfs.'):44} {first}"
    yield "\nWhich package imports which, and from how many modules"
    for room, others in arrows(sources).items():
        yield f"    {room:20} -> {', '.join(f'{other} {count}' for other, count in others.items())}"


def main() -> None:
    """Print the map."""
    sources = {module: file.read_text(encoding="utf-8") for module, file in MODULES.items()}
    sys.stdout.write("\n".join(lines(sources)).lstrip() + "\n")


if __name__ == "__main__":
    main()
