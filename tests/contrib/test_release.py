"""The version is the same everywhere that a release states it, and the changelog is ready for the next one."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from backyfs import __version__

ROOT = Path(__file__).resolve().parents[2]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_version_is_the_same_in_the_package_and_in_its_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == __version__


def test_the_changelog_begins_with_unreleased_changes() -> None:
    first, *released = re.findall(r"^## (.+)$", CHANGELOG, re.MULTILINE)
    assert first == "[Unreleased]"
    for heading in released:
        assert re.fullmatch(r"\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)", heading), heading


def test_the_newest_release_in_the_changelog_is_the_version_of_the_program() -> None:
    _, newest, *_ = re.findall(r"^## (\S+)", CHANGELOG, re.MULTILINE)
    assert newest == __version__
