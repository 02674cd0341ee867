"""--metrics-file: what Prometheus reads in it, after commands that succeeded or failed."""

from __future__ import annotations

import os
import stat
import time
from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from backyfs.cli.main import run
from backyfs.engine.versions.metrics import NameMetrics, RunMetrics, render_metrics
from backyfs.model import Version, VersionId, VersionStatus, VersionUid
from tests.support.images import random_image
from tests.support.repositories import BLOCK, make_repository

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
    """Run a command that writes metrics; return its status, its stderr, and the samples by name."""
    file.parent.mkdir()

    def call(*words):
        status = run(["-c", str(config), "--metrics-file", str(file), *map(str, words)])
        return status, capsys.readouterr().err, samples(file)

    return call


def samples(file):
    """Return the values by metric and labels, without the label for the configuration."""
    return {
        (
            sample.name.removeprefix("backyfs_"),
            *(sample.labels[label] for label in sorted(sample.labels) if label != "config"),
        ): sample.value
        for family in text_string_to_metric_families(file.read_text())
        for sample in family.samples
    }


def test_metrics_of_a_backup_say_what_it_did(call, tmp_path):
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
    assert (found["due", "disk", "daily"], found["sla_breaches", "disk", "daily"]) == (0, 1)  # too few


def test_metrics_say_what_is_due(call, tmp_path):
    _, _, found = call("backup", random_image(tmp_path / "image", BLOCK), "disk", "-t", "other")
    assert (found["due", "disk", "daily"], found["sla_breaches", "disk", "daily"]) == (1, 1)


@pytest.mark.parametrize("name", ['qu"ote', "back\\slash", "new\nline", "ünï", "a|b {}"])
def test_names_are_unchanged(call, tmp_path, name):
    found = call("backup", random_image(tmp_path / "image", BLOCK), name)[2]
    assert found["due", name, "daily"] == 1


def test_a_failed_command_writes_metrics_about_itself_and_the_repository(call, tmp_path):
    call("backup", random_image(tmp_path / "image", BLOCK), "disk")
    status, _, found = call("backup", tmp_path / "none", "disk")
    assert status == 7
    assert found["run_exit_status", "backup"] == 7
    assert found["versions", "disk", "valid"] == 1


def test_metrics_include_facts_of_the_database_while_the_key_is_unavailable(call, config, tmp_path):
    call("backup", random_image(tmp_path / "image", BLOCK), "disk")
    (tmp_path / "repository" / "backyfs.key").unlink()
    status, err, found = call("ls")
    assert status == 3
    assert err.count("\n") == 1
    assert found["run_exit_status", "ls"] == 3
    assert found["versions", "disk", "valid"] == 1


def test_metrics_cover_only_the_run_if_the_database_cannot_be_read(call, config, tmp_path):
    call("backup", random_image(tmp_path / "image", BLOCK), "disk")
    (tmp_path / "repository" / "backyfs.sqlite").unlink()
    status, err, found = call("ls")
    assert status == 1
    assert err.count("\n") == 1
    assert not (tmp_path / "repository" / "backyfs.sqlite").exists()
    assert {key[0] for key in found} == {"run_exit_status", "run_start_timestamp_seconds", "run_duration_seconds"}


def test_the_file_is_replaced_atomically_and_readable_by_others(call, file):
    call("ls")
    before = os.stat(file)
    call("ls")
    after = os.stat(file)
    assert after.st_ino != before.st_ino
    assert stat.S_IMODE(after.st_mode) == 0o644
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize("form", [["-m"], ["-q"], []])
def test_an_unwritable_file_is_reported_but_does_not_change_the_status(config, tmp_path, capsys, form):
    assert run(["-c", str(config), *form, "--metrics-file", f"{tmp_path}/none/file", "ls"]) == 0
    assert capsys.readouterr().err == (
        f"backyfs: metrics are not written: {tmp_path}/none/file: No such file or directory; name another file\n"
    )


def test_a_file_with_other_contents_is_left_alone(config, tmp_path, capsys):
    image = random_image(tmp_path / "image", BLOCK)
    before = image.read_bytes()
    assert run(["-c", str(config), "--metrics-file", str(image), "ls"]) == 0
    assert image.read_bytes() == before
    assert capsys.readouterr().err == (
        f"backyfs: metrics are not written: {image}: it is there, and it is not a file of metrics; name another file\n"
    )


def test_anything_but_a_regular_file_is_left_alone(config, tmp_path):
    (tmp_path / "null").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    for name in ("null", "pipe"):
        assert run(["-c", str(config), "--metrics-file", str(tmp_path / name), "ls"]) == 0
    assert os.readlink(tmp_path / "null") == "/dev/null"
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert (tmp_path / "pipe").is_fifo()


def test_a_symbolic_link_is_kept_and_an_empty_file_is_filled(call, file):
    other = file.parent.parent / "other"
    other.touch()
    file.parent.joinpath(file.name).symlink_to(other)
    call("ls")
    assert file.is_symlink()
    assert other.read_text().startswith("# HELP backyfs_run_exit_status ")


def test_help_writes_no_metrics(config, tmp_path):
    assert run(["-c", str(config), "--metrics-file", f"{tmp_path}/file", "ls", "--help"]) == 0
    assert not (tmp_path / "file").exists()


def test_the_key_is_not_asked_for_again(call, config, tmp_path):
    asked = tmp_path / "asked"
    key = tmp_path / "repository" / "backyfs.key"
    config.write_text(
        config.read_text().replace(f"encryption_key_file: {key}", f"encryption_key_command: echo >>{asked}; cat {key}")
    )
    assert call("ls")[0] == 0
    assert asked.read_text() == "\n"


def test_a_label_for_the_configuration_distinguishes_repositories(call, config, file, monkeypatch):
    call("ls")
    [line] = [line for line in file.read_text().splitlines() if line.startswith("backyfs_run_exit_status")]
    assert line == f'backyfs_run_exit_status{{config="{config}",command="ls"}} 0.0'
    monkeypatch.setenv("BACKYFS_CONFIG", str(config))
    assert run(["--metrics-file", str(file), "ls"]) == 0
    assert line in file.read_text().splitlines()


def test_without_statistics_the_date_of_the_version_is_used():
    version = Version(
        id=VersionId(1), uid=VersionUid("uid"), created_at=datetime(2026, 1, 1, tzinfo=UTC), name="disk",
        snapshot_name="", size_bytes=5, status=VersionStatus.VALID, protected=False, expire_at=None,
    )  # fmt: skip
    run = RunMetrics(
        config="", command="ls", exit_status=0, started_at=datetime(2026, 1, 2, tzinfo=UTC), duration_s=0.5
    )
    name = NameMetrics(
        name="disk", versions={VersionStatus.VALID: 1}, newest=version, statistics=None, due={}, breaches={}
    )
    assert render_metrics(run, [name]) == (
        "# HELP backyfs_run_exit_status Exit status of the last command that wrote this file.\n"
        "# TYPE backyfs_run_exit_status gauge\n"
        'backyfs_run_exit_status{command="ls"} 0.0\n'
        "# HELP backyfs_run_start_timestamp_seconds When that command was started.\n"
        "# TYPE backyfs_run_start_timestamp_seconds gauge\n"
        'backyfs_run_start_timestamp_seconds{command="ls"} 1767312000.0\n'
        "# HELP backyfs_run_duration_seconds How long it took.\n"
        "# TYPE backyfs_run_duration_seconds gauge\n"
        'backyfs_run_duration_seconds{command="ls"} 0.5\n'
        "# HELP backyfs_last_success_timestamp_seconds When the newest valid backup of a name ended.\n"
        "# TYPE backyfs_last_success_timestamp_seconds gauge\n"
        'backyfs_last_success_timestamp_seconds{name="disk"} 1767225600.0\n'
        "# HELP backyfs_last_success_size_bytes Size of the image.\n"
        "# TYPE backyfs_last_success_size_bytes gauge\n"
        'backyfs_last_success_size_bytes{name="disk"} 5.0\n'
        "# HELP backyfs_versions Versions of a name, by their status.\n"
        "# TYPE backyfs_versions gauge\n"
        'backyfs_versions{name="disk",status="valid"} 1.0\n'
    )
