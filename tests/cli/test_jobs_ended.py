"""`jobs` as data and `jobs --ended`: what the command line records about commands, and prints."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from backyfs.work.job import Job
from tests.support.images import random_image
from tests.support.jobs import spec
from tests.support.program import BACKYFS
from tests.support.repositories import BLOCK, back_up, opened, wait_for_job
from tests.support.stored import flip_a_byte

if TYPE_CHECKING:
    from collections.abc import Callable

    Call = Callable[..., tuple[int, str, str]]



@pytest.fixture
def image(tmp_path: Path) -> Path:
    return random_image(tmp_path / "image", 4 * BLOCK)


def ended(call: Call, *options: str) -> list[dict[str, Any]]:
    status, out, err = call("--json", "jobs", "--ended", *options)
    assert (status, err) == (0, "")
    rows: list[dict[str, Any]] = json.loads(out)
    return rows


def test_a_new_repository_has_no_ended_jobs(call: Call) -> None:
    assert call("-m", "jobs", "--ended") == (0, "ended|duration|command|outcome|error\n", "")
    assert ended(call) == []


def test_a_backup_is_recorded_with_its_report(call: Call, image: Path) -> None:
    status, out, _ = call("--json", "backup", image, "disk")
    assert status == 0
    [row] = ended(call)
    assert row["report"] == json.loads(out)
    assert (row["kind"], row["command"], row["names"]) == ("backup", "backup disk", ["disk"])
    assert (row["outcome"], row["exit_status"], row["error_class"], row["error"]) == ("succeeded", 0, None, None)
    assert row["started"] <= row["ended"]


def test_a_report_does_not_depend_on_the_form_of_output(call: Call, image: Path) -> None:
    call("backup", image, "disk")
    call("-m", "restore", "disk@latest", image.with_name("restored"))
    call("forget", "--schedulers", "")
    restored, backup = ended(call)[-2:]
    assert backup["report"]["name"] == "disk"
    assert restored["report"]["target"] == str(image.with_name("restored"))


def test_a_backup_whose_source_is_missing_is_recorded(call: Call, tmp_path: Path) -> None:
    status, _, err = call("backup", tmp_path / "nothing", "disk")
    assert status == 7
    [row] = ended(call)
    assert (row["outcome"], row["exit_status"], row["error_class"], row["report"]) == ("failed", 7, "SourceError", None)
    assert f"backyfs: error: {row['error']}" in err


def test_a_command_that_found_damage_failed_although_its_job_did_not(call: Call, config: Path, image: Path) -> None:
    with opened(config) as repository:
        back_up(repository, image, "disk")
    flip_a_byte(next((config.parent / "data").rglob("*.blob")))
    assert call("restore", "disk@latest", image.with_name("restored"))[0] == 20
    status, out, _ = call("--json", "scrub", "--all")
    assert status == 20
    assert call("repair")[0] == 20
    repaired, scrubbed, restored, _ = ended(call)
    for row in (repaired, scrubbed, restored):
        assert (row["outcome"], row["exit_status"], row["error_class"]) == ("failed", 20, "IntegrityError")
    assert scrubbed["report"] == json.loads(out)
    assert len(restored["report"]["damaged"]) == 1
    assert repaired["report"]["blobs_left"] == 1


def test_commands_that_change_the_repository_record_their_reports(call: Call, image: Path) -> None:
    for _ in range(2):
        call("backup", image, "disk")
    assert call("rm", "disk@latest")[0] == 0
    assert call("rm", "disk@latest")[0] == 4  # the last one
    assert call("migrate-encryption", "--all", "--to", "1")[0] == 0
    assert call("cleanup", "--dangerous-force")[0] == 0
    assert call("cleanup", "--full")[0] == 0
    full, cleanup, migration, kept, removed = ended(call, "--limit", "5")
    assert [row["command"] for row in (full, cleanup, migration)] == ["cleanup --full", "cleanup", "migrate-encryption"]
    assert full["report"]["orphans"] == 0
    assert cleanup["report"]["blobs"] > 0
    assert migration["report"]["blobs"] == cleanup["report"]["blobs"]
    assert (kept["exit_status"], kept["error_class"], kept["names"]) == (4, "VersionKeptError", ["disk"])
    assert [one["removed"] for one in kept["report"]] == [False]
    assert [one["removed"] for one in removed["report"]] == [True]


def test_a_forget_is_recorded_with_its_report(call: Call, config: Path, image: Path) -> None:
    config.write_text(config.read_text() + "[daily]\ninterval: 1d\nkeep: 1\nsla: 1h\n")
    for _ in range(3):
        call("backup", "--tag", "daily", image, "disk")
    status, out, _ = call("--json", "forget")
    assert status == 0
    [row] = ended(call, "-l", "1")
    assert (row["kind"], row["report"]) == ("forget", json.loads(out))


def test_a_killed_command_is_recorded_by_the_next_one(call: Call, config: Path, tmp_path: Path) -> None:
    large = random_image(tmp_path / "large", 200 * BLOCK)
    slow = f"[DataBackend]\nbandwidth_write: {64 << 10}"
    config.write_text(config.read_text().replace("[DataBackend]", slow))
    with subprocess.Popen([BACKYFS, "-q", "-c", config, "backup", large, "disk"]) as process:
        wait_for_job(config, "backup")
        process.kill()
    assert call("cleanup")[0] == 0
    cleaned, killed = ended(call)
    assert (cleaned["command"], cleaned["outcome"]) == ("cleanup", "succeeded")
    assert (killed["command"], killed["outcome"], killed["exit_status"]) == ("backup disk", "killed", None)
    assert killed["names"] == ["disk"]


def test_there_is_output_for_people_and_for_programs(call: Call, image: Path) -> None:
    call("backup", image, "disk|1\n")
    call("backup", image.with_name("nothing"), "other")
    status, out, _ = call("-m", "jobs", "--ended")
    assert status == 0
    header, failed, done = out.splitlines()
    assert header == "ended|duration|command|outcome|error"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\|\d+\.\d+\|backup other\|failed\|.*nothing.*", failed)
    assert re.fullmatch(r".*\|\d+\.\d+\|backup disk\\x7c1\\x0a\|succeeded\|", done)
    fields = "status,kind,names,host"
    assert call("-m", "-s", "jobs", "--ended", "-f", fields, "-l", "1")[1].startswith("7|backup|other|")
    status, out, _ = call("jobs", "--ended")
    assert status == 0
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +\d+s +backup other +failed +.*nothing", out)


def test_the_table_fits_into_80_columns(call: Call, image: Path, config: Path) -> None:
    call("backup", image, "disk")
    call("restore", "disk@latest", image)
    script = f"stty cols 80; exec {BACKYFS} -c {config} jobs --ended"
    done = subprocess.run(["script", "-qec", script, "/dev/null"], capture_output=True, text=True, check=True)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).splitlines()
    assert any("failed" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_a_limit_needs_ended(call: Call) -> None:
    status, _, err = call("jobs", "--limit", "3")
    assert (status, "add --ended" in err) == (1, True)
    status, _, err = call("jobs", "--ended", "-f", "beat")
    assert (status, "there is no field 'beat'" in err) == (1, True)


def test_a_running_job_is_listed_as_data(call: Call, config: Path) -> None:
    with opened(config) as repository, Job(repository.database, spec("backup disk")):
        [row] = json.loads(call("--json", "jobs")[1])
    assert (row["kind"], row["names"], row["writes_blobs"]) == ("backup", [], True)
    assert [row[name] for name in ("step", "done", "total", "unit", "elapsed_s")] == [None] * 5


def test_a_report_that_cannot_be_added_is_a_warning(call: Call, config: Path, image: Path) -> None:
    with opened(config) as repository, repository.database.write() as connection:
        connection.exec_driver_sql("CREATE TRIGGER no BEFORE UPDATE ON runs BEGIN SELECT RAISE(ABORT, 'no'); END")
    status, out, err = call("backup", image, "disk")
    assert status == 0
    assert "the report of this command is not recorded: database: no" in err
    assert "version " in out
    [row] = ended(call)
    assert (row["outcome"], row["report"]) == ("succeeded", None)
