"""`backyfs repair`: its output in three forms, and its exit statuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import update

from backyfs.cli.main import run
from backyfs.metadata.db.tables import versions
from tests.support.images import random_bytes, random_image
from tests.support.repositories import BLOCK, back_up, make_repository, opened
from tests.support.stored import blob_of, file_of, flip_a_byte

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run a command on a repository with a version whose blocks 0 and 2 are known to be damaged."""
    config = make_repository(tmp_path / "repository")
    with opened(config) as repository:
        version = back_up(repository, random_image(tmp_path / "image", 3 * BLOCK)).version
        for index in (0, 2):
            flip_a_byte(file_of(repository, blob_of(repository, version, index)))
    (tmp_path / "uid").write_text(version.uid)

    def call(*words: object) -> tuple[int, str, str]:
        status = run(["-c", str(config), *map(str, words)])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    assert call("scrub", "--all")[0] == 20
    return call


def test_repaired_blocks_are_reported(call, tmp_path):
    uid = (tmp_path / "uid").read_text()
    status, out, err = call("repair", "--from", tmp_path / "image")
    assert (status, err) == (0, "")
    assert out == f"2 blobs damaged; repaired: 2, 8.0 KiB; left: 0\nversion {uid} is valid again\n"
    assert call("restore", "disk@latest", tmp_path / "out")[0] == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "image").read_bytes()
    assert call("repair")[:2] == (0, "0 blobs damaged; repaired: none, 0 B; left: 0\n")


def test_remaining_damage_is_reported_with_status_20(call, tmp_path):
    uid = (tmp_path / "uid").read_text()
    with (tmp_path / "image").open("r+b") as file:
        file.write(random_bytes(BLOCK, 1))
    status, out, err = call("repair", uid, "--from", tmp_path / "image", "--dry-run")
    assert (status, out) == (20, "2 blobs damaged; can be repaired: 1, 4.0 KiB; left: 1\n")
    assert f"version {uid}: bytes 0 to {BLOCK}: " in err
    status, out, err = call("--json", "repair", "--from", tmp_path / "image")
    report = json.loads(out)
    assert status == 20
    assert (report["blobs_repaired"], report["blobs_left"], report["versions_valid"]) == (1, 1, [])
    assert [(line["uid"], line["start"], line["stop"]) for line in report["ranges"]] == [(uid, 0, BLOCK)]


def test_machine_output_has_fields(call, tmp_path):
    status, out, _ = call("-m", "repair", "--from", tmp_path / "image")
    header, line = out.splitlines()
    assert status == 0
    assert header == "blobs_damaged|blobs_repaired|bytes_repaired|bytes_stored|blobs_left|duration_s"
    assert line.startswith(f"2|2|{2 * BLOCK}|")


def test_another_repository_is_given_by_its_configuration(call, tmp_path):
    uid = (tmp_path / "uid").read_text()
    other = make_repository(tmp_path / "other", block_size=512)
    with opened(other) as repository:
        copy = back_up(repository, tmp_path / "image").version
        with repository.database.write() as connection:
            connection.execute(update(versions).where(versions.c.id == copy.id).values(uid=uid))
    assert call("repair", "--from-config", other)[0] == 0


def test_contradictory_arguments_are_refused(call, tmp_path):
    status, _, err = call("repair", "--search")
    assert status == 1
    assert "--from" in err
    assert call("repair", "--from", tmp_path / "none")[0] == 7
    assert call("repair", "--from-config", tmp_path / "none.cfg")[0] == 1
    assert call("repair", "ffffffff")[0] == 4


def test_a_backup_reports_its_repairs(call, tmp_path):
    status, _, err = call("backup", tmp_path / "image", "disk")
    assert status == 0
    assert "2 damaged blobs were found in the source and stored again; valid again: " in err
