"""Packages installed by the setup are pinned by hash, and match `pyproject.toml`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = ("build.txt", "run.txt", "dev.txt")


def pinned(file: str) -> dict[str, tuple[Requirement, list[str]]]:
    """Return the requirements of a file by name, each with its hashes."""
    text = (ROOT / "requirements" / file).read_text().replace("\\\n", " ")
    found: dict[str, tuple[Requirement, list[str]]] = {}
    for line in text.splitlines():
        if line and not line.lstrip().startswith("#"):
            requirement = Requirement(line.split(" --hash=")[0].strip())
            hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})", line)
            found[canonicalize_name(requirement.name)] = (requirement, hashes)
    return found


@pytest.mark.parametrize("file", FILES)
def test_every_package_is_pinned_to_one_release_with_hashes(file: str) -> None:
    packages = pinned(file)
    assert packages
    for requirement, hashes in packages.values():
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], requirement
        assert hashes, requirement


@pytest.mark.parametrize(("file", "extras"), [("run.txt", ("postgresql", "mysql")), ("dev.txt", ("dev",))])
def test_the_pinned_releases_satisfy_the_project(file: str, extras: tuple[str, ...]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    packages = pinned(file)
    for requirement in map(Requirement, wanted):
        there, _ = packages[canonicalize_name(requirement.name)]
        [version] = [specifier.version for specifier in there.specifier]
        assert requirement.specifier.contains(version), requirement


def test_all_files_pin_the_same_releases() -> None:
    release: dict[str, str] = {}
    for file in FILES:
        for name, (requirement, _) in pinned(file).items():
            assert release.setdefault(name, str(requirement.specifier)) == str(requirement.specifier), name


def test_the_setup_installs_nothing_else() -> None:
    script = (ROOT / "contrib/setup.sh").read_text()
    installs = [line for line in script.splitlines() if re.search(r'"\$\{pip\[@\]\}"', line)]
    assert len(installs) == 3
    for line in installs:
        assert "--require-hashes" in line or "--no-deps --no-build-isolation" in line, line
