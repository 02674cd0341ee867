"""`-` as a path: stdin or stdout where that makes sense, refused elsewhere, never a file with that name."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.program import BACKYFS
from tests.support.repositories import make_repository

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    config = make_repository(tmp_path / "repository")
    (tmp_path / "here").mkdir()

    def call(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in an empty directory and fail if it leaves anything there."""
        command = [BACKYFS, "-c", str(config), *words]
        streams = options or {"capture_output": True}
        done = subprocess.run(command, check=False, text=True, cwd=tmp_path / "here", **streams)
        assert list((tmp_path / "here").iterdir()) == []
        return done

    return call


def test_a_recovery_page_can_be_piped(call: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = call("--json", "key", "export", "-")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == call("key", "print").stdout


def test_a_recovery_page_is_not_exported_to_a_terminal(call: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    master, slave = os.openpty()
    try:
        done = call("key", "export", "-", stdout=slave, stderr=subprocess.PIPE)
    finally:
        os.close(slave)
        os.close(master)
    assert done.returncode == 1
    assert "`backyfs key print`" in done.stderr


def test_a_key_can_come_from_stdin(call: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = call("key", "add", "second", "--key-file", "-", input="5e" * 32, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "second" in call("key", "list").stdout


@pytest.mark.parametrize(
    "words",
    [
        ["--metrics-file", "-", "ls"], ["init", "-c", "-"], ["init", "--data", "-"], ["init", "--db", "-"],
        ["recover", "--to", "-"], ["upgrade", "--copy-to", "-"], ["mount", "--writable", "-", "."], ["-c", "-", "ls"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_dash_is_refused_where_a_stream_is_impossible(
    call: Callable[..., subprocess.CompletedProcess[str]], words: list[str]
) -> None:
    done = call(*words)
    assert done.returncode == 1
    assert "cannot be -" in done.stderr
