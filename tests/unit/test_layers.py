"""Which module may import which: modules import only downward, and foreign libraries only in the modules that own them.

Imports are read from the source, so those inside functions and below TYPE_CHECKING count too.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import backyfs

PACKAGE = Path(backyfs.__file__).parent

# From the bottom up. Units on the same floor do not import each other.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"libc", "remedies"}),
    frozenset({"errors", "files", "model", "moments", "ranges", "schemes", "text"}),
    frozenset({"geometry", "config", "host", "values"}),
    frozenset({"jsontext"}),
    frozenset({"metadata", "storage", "sources", "sealing", "keys", "hints"}),
    frozenset({"blocks", "catalog", "retention", "hooks", "migrations", "ownfiles", "targets", "work"}),
    frozenset({"trust", "repository"}),
    frozenset({"images"}),
    frozenset({"engine"}),
    frozenset({"mount"}),
    frozenset({"attach"}),
    frozenset({"reports"}),
    frozenset({"service"}),
    frozenset({"cli"}),
)
# The same for the wings of a unit.
WINGS: dict[str, tuple[frozenset[str], ...]] = {
    "metadata": (
        frozenset({"db"}),
        frozenset({"catalog"}),
        frozenset({"maps"}),
        frozenset({"records"}),
        frozenset({"upkeep"}),
        frozenset({"schema"}),
    ),
    "engine": (
        frozenset({"catalog"}),
        frozenset({"transfer"}),
        frozenset({"damage", "secrets", "versions", "setup"}),
        frozenset({"backup", "restore", "space"}),
    ),
}
# A mount marks damage that it finds, as a restore does, and needs nothing else of the commands.
ONLY = {("mount", "engine"): "backyfs.engine.damage.suspects"}
# Units that these use only through functions of the engine. They parse, call and render.
_INSIDE = frozenset({"blocks", "catalog", "images", "metadata", "migrations", "sealing", "storage"})
NEVER: dict[str, frozenset[str]] = {"cli": _INSIDE, "reports": _INSIDE}

OWNERS = {
    "pyfuse3": {"mount"},
    "trio": {"mount"},
    "sqlalchemy": {"metadata", "migrations"},
    "alembic": {"metadata", "migrations"},
    "obstore": {"storage"},
    "cryptography": {"sealing", "keys"},
    "click": {"cli"},
    "rich": {"cli"},
    "setproctitle": {"cli"},
}


def modules() -> dict[str, Path]:
    """Return every module of the package and its file; cli and migrations are symbolic links."""
    found = {}
    for directory, _, names in os.walk(PACKAGE, followlinks=True):
        for name in names:
            if name.endswith(".py"):
                file = Path(directory, name)
                parts = ("backyfs", *file.relative_to(PACKAGE).with_suffix("").parts)
                found[".".join(part for part in parts if part != "__init__")] = file
    return found


MODULES = modules()


def _numbered(floors: tuple[frozenset[str], ...]) -> dict[str, int]:
    return {unit: number for number, units in enumerate(floors) for unit in units}


FLOOR = _numbered(FLOORS)
WING_FLOOR = {unit: _numbered(wings) for unit, wings in WINGS.items()}


def unit_of(module: str) -> str:
    """Return the unit a module belongs to: the name after `backyfs`; empty for the package itself."""
    return _part(module, 1)


def wing_of(module: str) -> str:
    """Return the wing of its unit that a module belongs to; empty for the unit itself."""
    return _part(module, 2)


def _part(module: str, number: int) -> str:
    parts = module.split(".")
    return parts[number] if number < len(parts) else ""


def imports_of(source: str) -> set[str]:
    """Return the names of all modules that a source imports or may import: `from a import b` gives a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what they import"
            assert node.module is not None
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def modules_in(source: str) -> set[str]:
    """Return the modules of the package that a source imports, without the packages that contain imported modules."""
    names = imports_of(source) & MODULES.keys()
    parents = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and all(f"{node.module}.{alias.name}" in MODULES for alias in node.names):
            parents.add(node.module)
    return names - parents


def faults_of(module: str, source: str) -> list[str]:
    """Return the forbidden imports of a module."""
    unit = unit_of(module)
    faults = []
    for name in sorted(imports_of(source)):
        library = name.split(".")[0]
        if library == "backyfs":
            if name in MODULES and not _may_import(module, name):
                faults.append(name)
        elif library in OWNERS and unit not in OWNERS[library]:
            faults.append(name)
    return faults


def _may_import(module: str, name: str) -> bool:
    unit, other = unit_of(module), unit_of(name)
    if other == unit:
        return unit not in WINGS or _is_below(module, name, WING_FLOOR[unit])
    if other == "":
        return True
    if unit == "" or FLOOR[other] >= FLOOR[unit] or other in NEVER.get(unit, ()):
        return False
    only = ONLY.get((unit, other))
    return only is None or only == name or only.startswith(f"{name}.")  # Python imports the packages that contain it


def _is_below(module: str, name: str, floors: dict[str, int]) -> bool:
    wing, other = wing_of(module), wing_of(name)
    return other in {wing, ""} or (wing != "" and floors[other] < floors[wing])


def imported_by(program: str) -> set[str]:
    """Return the modules loaded after a program has run in a new interpreter."""
    script = f"import sys\n{program}\nprint('loaded:', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    last = done.stdout.splitlines()[-1]
    assert last.startswith("loaded: ")
    return set(last.split()[1:])


def test_every_module_has_a_floor() -> None:
    assert {unit_of(module) for module in MODULES} - {""} <= FLOOR.keys()


@pytest.mark.parametrize("unit", sorted(WINGS))
def test_every_module_has_a_wing(unit: str) -> None:
    assert {wing_of(module) for module in MODULES if unit_of(module) == unit} - {""} == WING_FLOOR[unit].keys()


def test_no_module_imports_itself_through_others() -> None:
    sources = {module: file.read_text(encoding="utf-8") for module, file in MODULES.items()}
    order = TopologicalSorter({module: modules_in(source) for module, source in sources.items()})
    order.prepare()  # raises CycleError, which names the modules


def test_modules_behind_symbolic_links_are_checked() -> None:
    assert {"backyfs.cli.main", "backyfs.cli.commands.ls", "backyfs.migrations.env"} <= MODULES.keys()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_modules_below_it(module: str) -> None:
    assert faults_of(module, MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source", "faults"),
    [
        ("backyfs.geometry", "from backyfs.model import BlockIndex", []),
        ("backyfs.geometry", "def f():\n    import backyfs.blocks", ["backyfs.blocks"]),
        ("backyfs.model", "from backyfs import geometry", ["backyfs.geometry"]),
        ("backyfs.storage.directory", "from backyfs.metadata.records.blobs import find_blobs",
         ["backyfs.metadata.records.blobs"]),
        ("backyfs.keys", "if TYPE_CHECKING:\n    from sqlalchemy import Connection",
         ["sqlalchemy", "sqlalchemy.Connection"]),
        ("backyfs.engine.backup.backup", "from backyfs.mount.pool import Pool", ["backyfs.mount.pool"]),
        ("backyfs.mount.session", "from backyfs.work.job import Job", []),
        ("backyfs.mount.session", "from backyfs.engine.backup.backup import backup", ["backyfs.engine.backup.backup"]),
        ("backyfs.cli.main", "from backyfs import __version__", []),
        ("backyfs.cli.commands.ls", "from backyfs.metadata.records.versions import list_versions",
         ["backyfs.metadata.records.versions"]),
        ("backyfs.service", "if TYPE_CHECKING:\n    from backyfs.metadata.db.database import Database", []),
        ("backyfs", "from backyfs.errors import BackyfsError", ["backyfs.errors"]),
    ],
)  # fmt: skip
def test_the_rule_itself_finds_violations(module: str, source: str, faults: list[str]) -> None:
    assert faults_of(module, source) == faults


def test_help_loads_neither_database_nor_fuse_nor_rich() -> None:
    program = "from backyfs.cli.main import run\nassert run(['--help']) == 0"
    assert imported_by(program) & {"sqlalchemy", "alembic", "pyfuse3", "trio", "rich", "cryptography"} == set()


def test_ls_loads_neither_fuse_nor_alembic_nor_what_servers_need() -> None:
    loaded = imported_by("import backyfs.cli.commands.ls")
    assert "backyfs.metadata.records.versions" in loaded
    unwanted = {"pyfuse3", "trio", "alembic", "sqlalchemy.dialects.mysql", "sqlalchemy.dialects.postgresql"}
    assert loaded & unwanted == set()


def test_a_kind_of_source_is_loaded_when_it_is_used() -> None:
    program = "from backyfs.sources.registry import open_source\nopen_source('null://1M')"
    loaded = imported_by(program)
    assert "backyfs.sources.null" in loaded
    assert "backyfs.sources.file" not in loaded


def test_a_kind_of_target_is_loaded_when_it_is_used() -> None:
    program = "from backyfs.targets.registry import find_destination\nfind_destination('null://')"
    loaded = imported_by(program)
    assert "backyfs.targets.null" in loaded
    assert loaded & {"backyfs.targets.file", "backyfs.targets.stream"} == set()


def test_opening_a_repository_loads_neither_fuse_nor_alembic() -> None:
    loaded = imported_by("import backyfs.repository")
    assert loaded & {"pyfuse3", "trio", "alembic"} == set()
