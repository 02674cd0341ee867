"""The wheel and the source distribution, built from a copy of the tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
NOT_TRACKED = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist", "images"
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the checkout, with its symbolic links, so a build may write to it."""
    copy = tmp_path_factory.mktemp("packaging") / "backyfs"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=NOT_TRACKED)
    return copy


def build(source: Path, kind: str, target: Path) -> Path:
    """Build a `wheel` or an `sdist` of a source tree without the network, and return it."""
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(target), str(source)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tree, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tree, "sdist", tmp_path_factory.mktemp("sdist"))


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def sources_below(directory: Path) -> set[str]:
    """Return the files of a package as they should be named in a wheel."""
    return {
        f"backyfs/{file.relative_to(directory.parent)}"
        for file in directory.rglob("*")
        if file.suffix in {".py", ".mako"}
    }


def test_the_wheel_contains_the_command_line_and_the_migrations(wheel: Path) -> None:
    names = set(contents(wheel))
    assert "backyfs/cli/__init__.py" in names
    assert "backyfs/migrations/env.py" in names
    assert sources_below(ROOT / "cli") | sources_below(ROOT / "migrations") <= names


def test_the_wheel_installs_only_backyfs(wheel: Path) -> None:
    release = "-".join(wheel.name.split("-")[:2])
    top_level = {PurePosixPath(name).parts[0] for name in contents(wheel)}
    assert top_level == {"backyfs", f"{release}.dist-info"}


def test_the_wheel_is_marked_as_typed(wheel: Path) -> None:
    assert "backyfs/py.typed" in contents(wheel)


def test_the_installed_commands_are_functions_of_the_command_line(wheel: Path) -> None:
    (entry_points,) = (text for name, text in contents(wheel).items() if name.endswith("/entry_points.txt"))
    assert entry_points.decode() == (
        "[console_scripts]\n"
        "backyfs = backyfs.cli:main\n"
        "mount.backyfs = backyfs.cli.mount_helper:main\n"
        "mount.fuse.backyfs = backyfs.cli.mount_helper:main\n"
    )


def test_the_source_distribution_builds_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    # With tar, because tarfile in Python 3.11.2 has no `filter` yet, and in 3.12 warns without one.
    (tmp_path / "source").mkdir()
    subprocess.run(["tar", "-xf", str(sdist), "-C", str(tmp_path / "source")], check=True)
    (source,) = (tmp_path / "source").iterdir()
    rebuilt = build(source, "wheel", tmp_path / "wheel")
    assert rebuilt.name == wheel.name
    assert contents(rebuilt) == contents(wheel)
