"""scrub as people and scripts call it, on our repositories and those of backy2."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import time
from datetime import timedelta

import click
import pytest

from backyfs.cli.ages import AGE
from backyfs.cli.main import run
from backyfs.errors import IntegrityError, InterruptedByUser, StorageError, UsageError, VersionNotFoundError
from backyfs.metadata.records.versions import list_versions
from tests.support.images import random_image
from tests.support.program import BACKYFS
from tests.support.repositories import BLOCK, back_up, opened, wait_for_progress
from tests.support.stored import blob_of, file_of, flip_a_byte
from tests.upgrade.reference import SQLITE_NAMES, Reference


@pytest.fixture
def image(tmp_path):
    return random_image(tmp_path / "image", 3 * BLOCK + 5)


@pytest.fixture
def version(config, image):
    with opened(config) as repository:
        return back_up(repository, image).version


@pytest.fixture
def damaged(config, version):
    """Damage the last block; return its blob."""
    with opened(config) as repository:
        blob = blob_of(repository, version, 3)
        flip_a_byte(file_of(repository, blob))
        return blob


def test_a_sound_version_is_reported_in_one_line(call, version):
    status, out, err = call("scrub", version.uid)
    assert (status, err) == (0, "")
    assert out.startswith("4 blobs checked, 12.0 KiB in ")
    assert out.endswith(": none damaged\n")


def test_a_damaged_block_shared_by_all_versions_is_reported_with_how_to_get_the_rest(
    call, config, image, damaged, tmp_path
):
    with opened(config) as repository:
        newest = back_up(repository, image).version
    assert call("scrub", newest.uid)[0] == 20
    status, _, err = call("restore", "disk@latest", tmp_path / "target")
    assert status == 4
    assert f"the newest damaged one is {newest.uid} of " in err
    assert "with 1 of 4 blocks known to be bad; `backyfs restore" in err
    assert call("restore", newest.uid, tmp_path / "target")[0] == 20
    assert (tmp_path / "target").read_bytes()[: 3 * BLOCK] == image.read_bytes()[: 3 * BLOCK]


@pytest.mark.parametrize("words", [["--all"], ["disk@latest"], ["disk@latest", "-s", "OTHER"]])
def test_a_sample_may_be_empty_as_in_backy2(call, version, damaged, words, tmp_path):
    other = random_image(tmp_path / "other", 3 * BLOCK + 5, seed=1)
    status, out, err = call("scrub", "-p", 0, *(str(other) if word == "OTHER" else word for word in words))
    assert (status, err) == (0, "")
    assert out.startswith("0 blobs checked, 0 B in ")
    assert f"|{version.uid}|1|" in call("-m", "ls")[1]


@pytest.mark.parametrize("words", [["-m", "scrub"], ["-m", "-s", "scrub"]])
def test_machine_output_is_empty_if_nothing_is_damaged(call, version, words):
    assert call(*words, version.uid) == (0, "", "")


def test_damage_is_reported_with_its_range_and_status(call, version, damaged):
    status, out, err = call("scrub", "--all")
    assert status == IntegrityError.exit_status == 20
    assert f"version {version.uid}: bytes 12288 to 12293: blob {damaged.uid} fails authentication" in err
    assert err.splitlines()[-1].startswith("backyfs: error: damage in 1 blob, which are marked, in ranges that the ")
    assert out.splitlines()[1:] == [f"version {version.uid} is invalid now"]
    assert f"|{version.uid}|0|" in call("-m", "ls")[1]
    status, out, err = call("-m", "scrub", "disk@latest")
    assert (status, out) == (VersionNotFoundError.exit_status, "")  # the version is not valid
    status, out, err = call("-m", "scrub", version.uid)
    assert (status, out) == (20, "")
    assert "bytes 12288 to 12293" in err


def test_repaired_versions_are_reported(call, config, version, damaged):
    assert call("scrub", "--all")[0] == 20
    with opened(config) as repository:
        flip_a_byte(file_of(repository, damaged))
    status, out, err = call("scrub", "--all")
    assert (status, err) == (0, "")
    assert out.splitlines()[1:] == [
        "marked as damaged, but intact again: 1 blob",
        f"version {version.uid} is valid again",
    ]


def test_json_contains_the_report(call, version, damaged):
    status, out, _ = call("--json", "scrub", version.uid)
    report = json.loads(out)
    assert status == 20
    assert report.pop("duration_s") >= 0
    (damage,) = report.pop("ranges")
    assert damage.pop("reason").startswith(f"blob {damaged.uid} ")
    assert damage == {"uid": version.uid, "start": 3 * BLOCK, "stop": 3 * BLOCK + 5}
    assert report == {
        "blobs_checked": 4,
        "bytes_checked": 3 * BLOCK + 5,
        "blobs_damaged": 1,
        "blobs_repaired": 0,
        "bytes_unknown": 0,
        "references_right": None,
        "bytes_differing": 0,
        "versions_invalid": [version.uid],
        "versions_valid": [],
        "requests": {},
    }


def test_a_version_named_twice_is_checked_once(call, version):
    report = json.loads(call("--json", "scrub", version.uid, version.uid[:8], "-p", "50")[1])
    assert report["blobs_checked"] == 2


def test_recently_checked_blobs_are_skipped(call, version):
    assert json.loads(call("--json", "scrub", version.uid)[1])["blobs_checked"] == 4
    assert json.loads(call("--json", "scrub", "--all", "--not-since", "30d")[1])["blobs_checked"] == 0
    assert json.loads(call("--json", "scrub", "--all", "--not-since", "0s")[1])["blobs_checked"] == 4


def test_a_source_that_differs_is_reported_but_nothing_is_marked(call, version, image):
    assert call("scrub", version.uid, "-s", image)[0] == 0
    assert call("scrub", version.uid, "--source", f"file://{image}")[0] == 0
    with image.open("r+b") as file:
        file.write(b"changed")
    status, out, err = call("scrub", version.uid, "-s", image)
    assert status == 20
    assert f"version {version.uid}: bytes 0 to 4096: the source differs" in err
    assert "the source differs in 4096 bytes" in err
    assert out.endswith(": none damaged\n")
    assert f"|{version.uid}|1|" in call("-m", "ls")[1]


def test_a_missing_source_has_its_own_status(call, version, tmp_path):
    assert call("scrub", version.uid, "-s", tmp_path / "gone")[0] == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name versions to check, or give --all; not both"),
        (["--all", "VERSION"], "name versions to check, or give --all; not both"),
        (["--all", "-s", "IMAGE"], "name that version alone"),
        (["-p", "-1", "--all"], "-1 is not in the range 0<=x<=100"),
        (["-p", "101", "--all"], "101 is not in the range 0<=x<=100"),
        (["--not-since", "soon", "--all"], "'soon' is not an age; give a number with s, m, h, d or w, as in 30d"),
    ],
)
def test_contradictory_arguments_are_refused(call, version, image, words, message):
    filled = [{"VERSION": version.uid, "IMAGE": str(image)}.get(word, word) for word in words]
    status, out, err = call("scrub", *filled)
    assert (status, out) == (UsageError.exit_status, "")
    assert message in err


def test_an_unknown_version_is_refused(call, version):
    status, _, err = call("scrub", "ffffffff")
    assert (status, version.uid in err) == (VersionNotFoundError.exit_status, False)


def test_an_empty_storage_is_not_damage(call, config, version):
    data = config.parent / "data"
    data.rename(config.parent / "away")
    data.mkdir()
    status, out, err = call("scrub", "--all")
    assert (status, out) == (StorageError.exit_status, "")
    assert "this is not the storage of this repository" in err
    data.rmdir()
    assert call("scrub", "--all")[0] == StorageError.exit_status
    (config.parent / "away").rename(data)
    assert f"|{version.uid}|1|" in call("-m", "ls")[1]


def test_ctrl_c_ends_a_scrub_soon_and_keeps_its_results(config, tmp_path):
    config.write_text(config.read_text().replace("[DataBackend]", "[DataBackend]\nbandwidth_read: 400000"))
    with opened(config) as repository:
        back_up(repository, random_image(tmp_path / "large", 1000 * BLOCK))
    with subprocess.Popen([BACKYFS, "-c", str(config), "scrub", "--all"], stderr=subprocess.PIPE, text=True) as process:
        wait_for_progress(config, "scrub")
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        _, err = process.communicate(timeout=30)
    assert time.monotonic() - started < 5
    assert process.returncode == InterruptedByUser.exit_status == 130, err
    config.write_text(config.read_text().replace("bandwidth_read: 400000", ""))
    done = subprocess.run(
        [BACKYFS, "-c", str(config), "--json", "scrub", "--all", "--not-since", "1d"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert 0 < json.loads(done.stdout)["blobs_checked"] < 1000


def test_a_reader_that_stops_early_is_not_an_error(config, version):
    done = subprocess.run(
        ["/bin/sh", "-c", f"{BACKYFS} -c {config} --json scrub {version.uid} | true"], capture_output=True, check=True
    )
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30d", timedelta(days=30)), ("12h", timedelta(hours=12)), ("90m", timedelta(minutes=90)),
     ("5s", timedelta(seconds=5)), ("2w", timedelta(days=14))],
)  # fmt: skip
def test_an_age_is_a_number_with_a_unit(text, expected):
    assert AGE.convert(text, None, None) == AGE.convert(expected, None, None) == expected


@pytest.mark.parametrize("text", ["", "d", "30", "-1d", "+30d", "1.5d", "30D", "1y", "100000d"])
def test_an_invalid_age_is_refused(text):
    with pytest.raises(click.BadParameter, match="is not an age"):
        AGE.convert(text, None, None)


# Repositories of backy2


@pytest.fixture
def adopted(tmp_path, capsys):
    def adopt(name):
        reference = Reference(name, tmp_path)
        assert run(["-q", "-c", str(reference.config_file), "ls"]) == 0
        capsys.readouterr()
        return reference

    return adopt


@pytest.mark.parametrize("name", SQLITE_NAMES)
def test_the_state_of_backy2_blocks_is_detected(name, adopted, capsys):
    reference = adopted(name)
    with_damage = any(facts["blocks"]["unreadable_ids"] for facts in reference.expected["versions"].values())
    assert run(["-c", str(reference.config_file), "--json", "scrub", "--all"]) == (20 if with_damage else 0)
    report = json.loads(capsys.readouterr().out)
    size = reference.expected["block_size"]
    damage = {(line["uid"], index) for line in report["ranges"]
            for index in range(line["start"] // size, -(-line["stop"] // size))}  # fmt: skip
    assert damage == {
        (uid, index)
        for uid, facts in reference.expected["versions"].items()
        for index in facts["blocks"]["unreadable_ids"]
    }
    assert (report["versions_invalid"], report["versions_valid"]) == ([], [])
    assert run(["-c", str(reference.config_file), "-m", "-s", "ls", "-f", "uid,valid"]) == 0
    assert dict(line.split("|") for line in capsys.readouterr().out.splitlines()) == {
        uid: str(facts["valid"]) for uid, facts in reference.expected["versions"].items()
    }


def test_a_version_that_backy2_found_damaged_is_valid_after_its_repair(adopted, capsys):
    reference = adopted("scrubbed-invalid")
    uid = reference.expected["damage"][0]["uid"]
    file = reference.directory / "data" / uid[:2] / uid[2:4] / f"{uid}.blob"
    stored = bytearray(file.read_bytes())
    with opened(reference.config_file) as repository, repository.database.read() as connection:
        versions = {version.uid: version for version in list_versions(connection)}
    first, second, _, last = reference.expected["versions"]
    with opened(reference.config_file) as repository:
        fingerprint = blob_of(repository, versions[first], 5).fingerprint
    for bit in range(8):
        stored[1234] ^= 1 << bit
        if hashlib.sha512(stored).digest() == fingerprint:
            break
        stored[1234] ^= 1 << bit
    else:
        stored[1234] ^= 0xFF
        assert hashlib.sha512(stored).digest() == fingerprint
    file.write_bytes(stored)

    assert run(["-c", str(reference.config_file), "--json", "scrub", "--all"]) == 20
    report = json.loads(capsys.readouterr().out)
    assert (report["blobs_repaired"], report["versions_valid"]) == (1, [first])
    assert {line["uid"] for line in report["ranges"]} == {second, last}  # one of their blobs was truncated
