"""`backyfs cleanup`: its output, and that it frees storage."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from backyfs.cli.main import run
from tests.support.images import random_image
from tests.support.repositories import BLOCK, back_up, make_repository, opened

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Make a repository of three plain blocks whose version was removed."""
    config = make_repository(tmp_path / "repository", encrypted=False)
    with opened(config) as repository:
        back_up(repository, random_image(tmp_path / "image", 3 * BLOCK))
    assert run(["-c", str(config), "-q", "rm", "--force", "disk@latest"]) == 0
    return config


@pytest.fixture
def call(config: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    capfd.readouterr()

    def call(*words: str) -> tuple[int, str, str]:
        status = run(["-c", str(config), *words])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return call


def objects(config: Path) -> int:
    return sum(1 for _ in (config.parent / "data").rglob("*.blob"))


def test_blocks_of_the_last_hour_are_kept_by_default(call: Call, config: Path) -> None:
    assert call("cleanup", "--dry-run") == (
        0,
        "0 blobs would be deleted, 0 B\n3 blobs were stored in the last hour and are kept for now\n",
        "",
    )
    status, out, err = call("cleanup")
    assert (status, err) == (0, "")
    assert out.startswith("0 blobs deleted, 0 B freed, in ")
    assert objects(config) == 3
    assert call("cleanup", "-n", "--dangerous-force")[1] == "3 blobs would be deleted, 12.0 KiB\n"
    status, out, err = call("cleanup", "--dangerous-force")
    assert (status, err) == (0, "")
    assert out.startswith("3 blobs deleted, 12.0 KiB freed, in ")
    assert objects(config) == 0


def test_output_for_programs_is_in_bytes(call: Call) -> None:
    assert call("-m", "cleanup", "-n", "--dangerous-force")[1] == (
        f"pages|blobs|stored_bytes|young_blobs\n1|3|{3 * BLOCK}|0\n"
    )
    report = json.loads(call("--json", "cleanup", "--dangerous-force")[1])
    assert report.pop("duration_s") >= 0
    assert report == {"pages": 1, "blobs": 3, "stored_bytes": 3 * BLOCK, "requests": {}}
    header, row = call("-m", "cleanup")[1].splitlines()
    assert header == "pages|blobs|stored_bytes|duration_s"
    assert row.startswith("0|0|0|")


def test_a_new_backup_reuses_kept_blocks(call: Call, config: Path, tmp_path: Path) -> None:
    call("cleanup")
    assert json.loads(call("--json", "backup", str(tmp_path / "image"), "disk")[1])["blocks_deduplicated"] == 3
    call("cleanup", "--dangerous-force")
    assert objects(config) == 3
    assert call("scrub", "--all")[0] == 0


def test_a_full_cleanup_reports_what_it_corrected_and_found(call: Call, config: Path, tmp_path: Path) -> None:
    assert call("backup", str(tmp_path / "image"), "again")[0] == 0
    data = config.parent / "data"
    (data / "ff" / "ff").mkdir(parents=True)
    (data / "ff" / "ff" / f"{'f' * 32}.blob").write_bytes(b"nobody's")
    status, out, err = call("cleanup", "--full", "--dry-run")
    assert (status, err) == (0, "")
    assert out.splitlines()[1:] == [
        "no references are wrong",
        "0 objects that the database does not know would be deleted, 0 B",
        "1 such objects are recent, or belong to a running command, and are kept for now",
        "no blobs seem to be missing or of another size",
    ]
    next(file for file in data.glob("??/??/*.blob") if file.stem != "f" * 32).unlink()
    status, out, err = call("cleanup", "--full", "--dangerous-force")
    assert status == 20
    assert out.splitlines()[1:3] == [
        "no references were wrong",
        "1 of these objects were unknown to the database, 8 B",
    ]
    assert out.splitlines()[3].endswith(" is invalid now")
    assert "is missing from the storage" in err
    assert "damage in 1 blobs, which are marked" in err
    assert " %)" not in err  # progress with nothing to do


def test_a_prefix_needs_a_full_cleanup(call: Call) -> None:
    status, _, err = call("cleanup", "--prefix", "ab")
    assert status == 1
    assert "--full" in err
    status, _, err = call("cleanup", "--full", "--prefix", "../x")
    assert status == 1
    assert "letters and digits only" in err


def test_a_blob_that_cannot_be_deleted_is_a_failure_and_all_others_are_deleted(call: Call, config: Path) -> None:
    first = min((config.parent / "data").glob("??/??/*.blob"))
    first.unlink()
    first.mkdir()
    status, out, err = call("cleanup", "--dangerous-force")
    assert status == 6
    assert "2 blobs deleted" in out
    assert f"{first} is a directory; move it away" in err
    assert "1 objects could not be deleted, and everything else was" in err
    first.rmdir()
    assert call("cleanup", "--dangerous-force")[0] == 0
