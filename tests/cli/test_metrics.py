"""--metrics-file: what Prometheus reads of it, after commands that worked and after others."""

from __future__ import annotations

import os
import stat
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from backyfs.cli.main import run
from tests.images import random_image
from tests.repositories import BLOCK, make_repository

SCHEDULER = "\n[daily]\ninterval: 1d\nkeep: 3\nsla: 3h\n"


@pytest.fixture
def config(tmp_path):
    config = make_repository(tmp_path / "repository")
    config.write_text(config.read_text() + SCHEDULER)
    return config


@pytest.fixture
def file(tmp_path):
    return tmp_path / "metrics" / "backyfs.prom"


@pytest.fixture
def call(config, file, capsys):
    """Run a command that writes metrics; return its status, what it says on stderr, and the samples by name."""
    file.parent.mkdir()

    def call(*words):
        status = run(["-c", str(config), "--metrics-file", str(file), *map(str, words)])
        return status, capsys.readouterr().err, samples(file)

    return call


def samples(file):
    families = text_string_to_metric_families(file.read_text())
    return {
        (sample.name.removeprefix("backyfs_"), *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_backup_is_told_with_what_it_did(call, tmp_path):
    image = random_image(tmp_path / "image", 3 * BLOCK)
    before = time.time()
    status, err, found = call("backup", image, "disk", "-t", "daily")
    assert (status, err) == (0, "")
    assert found["run_exit_status", "backup"] == 0
    assert before - 1 <= found["run_start_timestamp_seconds", "backup"] <= time.time()
    assert before - 1 <= found["last_success_timestamp_seconds", "disk"] <= time.time()
    assert 0 < found["last_success_duration_seconds", "disk"] < 60
    assert [found[f"last_success_{what}_bytes", "disk"] for what in ("size", "read", "written")] == [3 * BLOCK] * 3
    assert found["last_success_stored_bytes", "disk"] > 3 * BLOCK
    assert [found["versions", "disk", status] for status in ("valid", "invalid", "incomplete")] == [1, 0, 0]
    assert (found["due", "disk"], found["sla_breaches", "disk"]) == (0, 1)  # too few


def test_what_is_due_is_told(call, tmp_path):
    _, _, found = call("backup", random_image(tmp_path / "image", BLOCK), "disk", "-t", "other")
    assert (found["due", "disk"], found["sla_breaches", "disk"]) == (1, 1)


@pytest.mark.parametrize("name", ['qu"ote', "back\\slash", "new\nline", "ünï", "a|b {}"])
def test_names_come_as_they_are(call, tmp_path, name):
    found = call("backup", random_image(tmp_path / "image", BLOCK), name)[2]
    assert found["due", name] == 1


def test_a_command_that_fails_is_told_beside_what_there_is(call, tmp_path):
    call("backup", random_image(tmp_path / "image", BLOCK), "disk")
    status, _, found = call("backup", tmp_path / "none", "disk")
    assert status == 7
    assert found["run_exit_status", "backup"] == 7
    assert found["versions", "disk", "valid"] == 1


def test_of_a_repository_that_cannot_be_opened_the_run_alone_is_told(call, config, tmp_path):
    call("backup", random_image(tmp_path / "image", BLOCK), "disk")
    (tmp_path / "repository" / "backyfs.key").unlink()
    status, err, found = call("ls")
    assert status == 3
    assert err.count("\n") == 1
    assert {key[0] for key in found} == {"run_exit_status", "run_start_timestamp_seconds", "run_duration_seconds"}


def test_the_file_is_replaced_whole_and_can_be_read_by_others(call, file):
    call("ls")
    before = os.stat(file)
    call("ls")
    after = os.stat(file)
    assert after.st_ino != before.st_ino
    assert stat.S_IMODE(after.st_mode) == 0o644
    assert os.listdir(file.parent) == [file.name]


def test_a_file_that_cannot_be_written_is_a_warning(config, tmp_path, capsys):
    assert run(["-c", str(config), "--metrics-file", f"{tmp_path}/none/file", "ls"]) == 0
    assert capsys.readouterr().err == (
        f"backyfs: metrics are not written: {tmp_path}/none/file: No such file or directory; name another file\n"
    )
