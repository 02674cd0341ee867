"""`backyfs backup` with all its options."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from backyfs.metadata.db.tables import versions as versions_table
from backyfs.metadata.records.versions import list_versions
from backyfs.model import VersionStatus
from tests.support.images import random_image
from tests.support.program import BACKYFS
from tests.support.repositories import BLOCK, back_up, opened, wait_for

PATIENCE_S = 60


@pytest.fixture
def image(tmp_path):
    return random_image(tmp_path / "image", 20 * BLOCK)


@pytest.fixture
def versions(config):
    """Return the versions of the repository, oldest first."""

    def versions():
        with opened(config) as repository, repository.database.read() as connection:
            return sorted(list_versions(connection), key=lambda version: version.created_at)

    return versions


def changed(image, tmp_path, block):
    """Change a block of an image; return a hints file that lists it."""
    with image.open("r+b") as file:
        file.seek(block * BLOCK)
        file.write(os.urandom(BLOCK))
    hints = tmp_path / "hints.json"
    hints.write_text(json.dumps([{"offset": block * BLOCK, "length": BLOCK, "exists": "true"}]))
    return hints


@pytest.mark.parametrize("option", ["-r", "--rbd", "--hints"])
def test_with_hints_and_a_base_only_changes_are_read(call, tmp_path, image, option):
    uid = call("-m", "backup", image, "disk")[1].splitlines()[0]
    status, out, err = call("--json", "backup", image, "disk", option, changed(image, tmp_path, 7), "-f", uid)
    assert (status, err) == (0, "")
    assert (json.loads(out)["blocks_read"], json.loads(out)["blocks_written"]) == (1, 1)
    assert call("restore", "disk@latest", tmp_path / "out")[0] == 0
    assert (tmp_path / "out").read_bytes() == image.read_bytes()


def test_hints_can_come_from_stdin(call, tmp_path, image, monkeypatch):
    call("backup", image, "disk")
    text = changed(image, tmp_path, 3).read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    status, out, _ = call("--json", "backup", image, "disk", "-r", "-", "-f", "disk@latest")
    assert (status, json.loads(out)["blocks_read"]) == (0, 1)


def test_hints_of_another_image_end_with_status_5_and_leave_no_version(call, tmp_path, image, versions):
    call("backup", image, "disk")
    hints = changed(image, tmp_path, 7)
    random_image(image, 20 * BLOCK, 5)
    status, out, err = call("-m", "backup", image, "disk", "-r", hints, "-f", "disk@latest")
    assert (status, out) == (5, "")
    assert re.fullmatch(
        r"backyfs: error: bytes \d+ to \d+ of the source are in no hint, but differ from version .*"
        r"make new ones, or back up without hints\n",
        err,
    )
    assert len(versions()) == 1


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("no json", "not valid JSON"),
        ('[{"offset": 0}]', "entry 1: offset and length must be numbers of bytes"),
        ('[{"offset": 0, "length": 999999, "exists": true}]', "the hints reach to byte 999999"),
    ],
)
def test_invalid_hints_end_with_status_5(call, tmp_path, image, text, fact, versions):
    hints = tmp_path / "hints.json"
    hints.write_text(text)
    status, _, err = call("backup", image, "disk", "-r", hints)
    assert status == 5
    assert fact in err
    assert versions() == []


def test_a_missing_hints_file_ends_with_status_5(call, tmp_path, image):
    status, _, err = call("backup", image, "disk", "-r", tmp_path / "none")
    assert (status, err) == (
        5,
        f"backyfs: error: {tmp_path}/none cannot be read: No such file or directory; name a file with hints\n",
    )


@pytest.mark.parametrize("option", ["-f", "-c"])
def test_an_unknown_version_ends_with_status_4(call, image, option):
    status, _, err = call("backup", image, "disk", option, "disk@latest")
    assert (status, err) == (
        4,
        "backyfs: error: no version is named 'disk'; `backyfs ls` lists the versions\n",
    )


def test_the_tags_of_backy2_are_added_when_due(call, image, versions):
    call("backup", image, "disk")
    call("backup", image, "disk")
    call("backup", image, "other")
    assert [version.tags for version in versions()] == [
        ("b_daily", "b_monthly", "b_weekly"),
        (),
        ("b_daily", "b_monthly", "b_weekly"),
    ]


def test_a_backup_warns_of_a_version_dated_in_the_future_and_still_gets_its_tags(call, config, image, versions):
    call("backup", image, "disk")
    [ahead] = versions()
    with opened(config) as repository, repository.database.write() as connection:
        connection.execute(update(versions_table).values(created_at=datetime(2096, 1, 2, 3, 4, 5, tzinfo=UTC)))
    status, _, err = call("backup", image, "disk")
    assert status == 0
    assert f"versions of disk dated in the future: 1, the newest {ahead.uid} of 2096-01-02 03:04:05 UTC; until" in err
    assert [version.tags for version in versions()] == [("b_daily", "b_monthly", "b_weekly")] * 2
    assert call("backup", image, "other")[2] == ""


def test_tags_are_given_as_csv(call, image, versions):
    assert call("backup", image, "disk", "-t", 'hourly,"a,b"')[0] == 0
    assert [version.tags for version in versions()] == [("a,b", "hourly")]


def test_schedulers_that_are_due_add_their_tags(call, config, image, versions):
    schedulers = "".join(f"[{name}]\ninterval: 1d\nkeep: {keep}\nsla: 1h\n" for name, keep in
                         (("daily", 1), ("weekly", 2), ("monthly", 0), ("hourly", 1)))  # fmt: skip
    config.write_text(config.read_text() + schedulers)
    for _ in range(2):
        assert call("backup", image, "disk", "-t", "mine", "--due")[0] == 0
    assert call("backup", image, "other", "--due")[0] == 0
    assert [version.tags for version in versions()] == [
        ("daily", "mine", "weekly"),
        ("mine",),
        ("b_daily", "b_monthly", "b_weekly", "daily", "weekly"),
    ]


def test_without_schedulers_no_tag_is_due(call, image, versions):
    assert call("backup", image, "disk", "-t", "daily", "--due")[0] == 0
    assert [version.tags for version in versions()] == [("daily",)]


def test_white_space_around_tags_is_dropped(call, image, versions):
    assert call("backup", image, "disk", "-t", ' daily, weekly ,"a, b"')[0] == 0
    assert [version.tags for version in versions()] == [("a, b", "daily", "weekly")]


@pytest.mark.parametrize("tags", [",", "a,,b", '"a'])
def test_invalid_tags_are_refused(call, image, tags, versions):
    status, _, err = call("backup", image, "disk", "-t", tags)
    assert status == 1
    assert "tag" in err
    assert versions() == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("2031-02-03", datetime(2031, 2, 3, tzinfo=UTC)),
        ("2031-02-03 04:05:06", datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)),
        ("2031-02-03T04:05:06", datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)),
    ],
)
def test_the_expiry_can_be_a_date(call, image, given, expected, versions):
    assert call("backup", image, "disk", "-e", given)[0] == 0
    assert [version.expire_at for version in versions()] == [expected]


def test_the_expiry_can_be_an_age(call, image, versions):
    assert call("backup", image, "disk", "-e", "+30d")[0] == 0
    [version] = versions()
    assert abs(version.expire_at - version.created_at - timedelta(days=30)) < timedelta(minutes=1)


def test_an_invalid_expiry_is_refused(call, image, versions):
    status, _, err = call("backup", image, "disk", "-e", "tomorrow")
    assert status == 1
    assert "'tomorrow'" in err
    assert versions() == []


def test_the_uid_is_printed_before_the_end(config, tmp_path):
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(1 << 40)  # one hole, which the kernel reads within a second
        file.seek(0)
        file.write(os.urandom(64 << 20))
    process = subprocess.Popen(
        [BACKYFS, "-c", str(config), "-m", "backup", str(image), "disk"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    uid = process.stdout.readline().strip()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    with opened(config) as repository, repository.database.read() as connection:
        assert [version.uid for version in list_versions(connection)] == [uid]


def test_an_interrupted_backup_says_how_to_continue_and_can_be_continued(config, tmp_path):
    image = random_image(tmp_path / "image", 64 << 20)
    unlimited = config.read_text()
    config.write_text(unlimited.replace("[DataBackend]", f"[DataBackend]\nbandwidth_write: {8 << 20}"))
    command = [BACKYFS, "-c", str(config), "backup", str(image), "disk", "-t", "mine"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any((tmp_path / "repository" / "data").rglob("*.blob")), "a block is stored")
    config.write_text(unlimited)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    [option] = re.findall(r"add (--continue-version \S+) to continue", err)
    done = subprocess.run(
        [BACKYFS, "-c", str(config), "-m", "backup", *option.split(), str(image), "disk", "-e", "2031-01-01"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    with opened(config) as repository, repository.database.read() as connection:
        [version] = list_versions(connection)
    assert (version.status, version.tags) == (VersionStatus.VALID, ("mine",))
    assert version.expire_at == datetime(2031, 1, 1, tzinfo=UTC)
    assert done.stdout == f"{version.uid}\n" * 2


def test_a_running_backup_is_not_continued_by_another(config, image, call):
    with opened(config) as repository:
        announced = []

        def announce(version):
            announced.append(call("backup", image, "disk", "-c", version.uid))

        back_up(repository, image, announce=announce)
    [(status, _, err)] = announced
    assert status == 4
    assert "is in use by backup disk (process" in err
