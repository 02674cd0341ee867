"""du, stats, diff-meta and jobs: their output in each form, for our repositories and those of backy2."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
import subprocess

import pytest
from sqlalchemy import update

from backyfs.cli.main import run
from backyfs.errors import InterruptedByUser, StorageError, UsageError, VersionNotFoundError, WrongKeyError
from backyfs.metadata.db.tables import blobs
from backyfs.metadata.records.versions import list_versions
from backyfs.work.job import Job
from tests.support.images import random_image
from tests.support.jobs import spec
from tests.support.program import BACKYFS
from tests.support.repositories import BLOCK, back_up, copy_repository, make_repository, opened
from tests.upgrade.reference import FIXTURES, Reference

REFERENCES = sorted(path.parent.name for path in FIXTURES.glob("*/output"))
UNKNOWN = "ffffffff-ffff-ffff-ffff-ffffffffffff"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make three versions: an image, the image with block 1 changed and a hole and a block added, and another name."""
    directory = tmp_path_factory.mktemp("made")
    config = make_repository(directory / "repository")
    image = random_image(directory / "image", 3 * BLOCK + 5)
    with opened(config) as repository:
        back_up(repository, image)
        with image.open("r+b") as file:
            file.seek(BLOCK)
            file.write(b"x" * BLOCK)
            file.truncate(5 * BLOCK)
            file.seek(5 * BLOCK)
            file.write(b"y" * 10)
        back_up(repository, image)
        back_up(repository, image, name="zwei, \N{SNOWMAN}|")
    return config


@pytest.fixture
def config(made, tmp_path):
    shutil.copy(made.parent.with_name("image"), tmp_path)
    return copy_repository(made.parent, tmp_path / "repository")


@pytest.fixture
def uids(config):
    with opened(config) as repository, repository.database.read() as connection:
        return [version.uid for version in list_versions(connection)]


# As backy2


@pytest.mark.parametrize("command", ["du", "stats"])
@pytest.mark.parametrize("name", REFERENCES)
def test_machine_output_is_the_same_as_in_backy2(name, command, tmp_path, capsysbinary):
    reference = Reference(name, tmp_path)
    assert run(["-q", "-c", str(reference.config_file), "ls"]) == 0  # upgrades
    capsysbinary.readouterr()
    assert run(["-m", "-c", str(reference.config_file), command]) == 0
    assert capsysbinary.readouterr().out == (FIXTURES / name / "output" / f"{command}.txt").read_bytes()


@pytest.mark.parametrize("name", REFERENCES)
def test_differences_are_the_same_as_in_backy2(name, tmp_path, capsysbinary):
    reference = Reference(name, tmp_path)
    assert run(["-q", "-c", str(reference.config_file), "ls"]) == 0
    capsysbinary.readouterr()
    heading, _, expected = (FIXTURES / name / "output" / "diff-meta.txt").read_bytes().partition(b"\n")
    left, right = heading.decode().split()[2:]
    assert run(["-m", "-c", str(reference.config_file), "diff-meta", left, right]) == 0
    captured = capsysbinary.readouterr()
    assert captured.out == expected
    assert b"are in one version only, and not listed; see --all" in captured.err


# In scrubbed-invalid a plain blob is shorter on disk than it should be.
@pytest.mark.parametrize("name", [name for name in REFERENCES if name != "scrubbed-invalid"])
def test_stored_is_the_disk_space_of_the_blobs_of_a_version(name, tmp_path, capsys):
    reference = Reference(name, tmp_path)
    with contextlib.closing(sqlite3.connect(reference.sqlite_file)) as database:
        used = database.execute("SELECT DISTINCT version_uid, uid FROM blocks WHERE uid IS NOT NULL").fetchall()
    on_disk = {path.stem: path.stat().st_size for path in (reference.directory / "data").rglob("*.blob")}
    assert run(["-q", "-c", str(reference.config_file), "ls"]) == 0
    capsys.readouterr()
    assert run(["--json", "-c", str(reference.config_file), "du"]) == 0
    for row in json.loads(capsys.readouterr().out):
        assert row["stored"] == sum(on_disk[blob] for version, blob in used if version == row["uid"])


# du


def test_du_counts_all_of_the_chosen_versions(call, uids):
    whole = call("-m", "-s", "du")[1].splitlines()
    assert len(whole) == 3
    assert call("-m", "-s", "du", uids[1])[1].splitlines() == [whole[1]]
    assert call("-m", "-s", "du", uids[2], uids[0])[1].splitlines() == [whole[0], whole[2]]


def test_du_shows_chosen_fields(call, uids, config):
    objects = sum(path.stat().st_size for path in (config.parent / "data").rglob("*.blob"))
    status, out, _ = call("-m", "du", "-f", "uid,Real,Stored")
    assert status == 0
    lines = [line.split("|") for line in out.splitlines()]
    assert lines[0] == ["uid", "Real", "Stored"]
    assert [line[:2] for line in lines[1:]] == [
        [uids[0], str(3 * BLOCK + 5)],
        [uids[1], str(4 * BLOCK + 10)],
        [uids[2], str(4 * BLOCK + 10)],
    ]
    assert 3 * BLOCK < int(lines[1][2]) < objects


def test_du_counts_blocks_by_encryption_version_on_request(call, uids, config):
    with opened(config) as repository, repository.database.write() as connection:
        connection.execute(update(blobs).where(blobs.c.id.in_([1, 2])).values(encryption_version=0))
    columns = ("-f", "Encryption Versions,Real,uid")
    assert call("-m", "-s", "du", *columns)[1].splitlines() == [
        f"0:2,2:2|{3 * BLOCK + 5}|{uids[0]}",
        f"0:1,2:4|{4 * BLOCK + 10}|{uids[1]}",
        f"0:1,2:4|{4 * BLOCK + 10}|{uids[2]}",
    ]
    assert [row["encryption_versions"] for row in json.loads(call("--json", "du", *columns, uids[0])[1])] == [
        {"0": 2, "2": 2}
    ]
    assert "encryption_versions" not in json.loads(call("--json", "du")[1])[0]
    assert "0:2,2:2" in call("du", *columns)[1]
    assert "Encryption" not in call("du")[1]


def test_ls_counts_blocks_by_encryption_version_on_request(call, uids, config):
    with opened(config) as repository, repository.database.write() as connection:
        connection.execute(update(blobs).where(blobs.c.id.in_([1, 2])).values(encryption_version=0))
    columns = ("-f", "uid,encryption_versions")
    assert call("-m", "ls", *columns)[1].splitlines() == [
        "uid|encryption_versions", f"{uids[0]}|0:2,2:2", f"{uids[1]}|0:1,2:4", f"{uids[2]}|0:1,2:4"
    ]  # fmt: skip
    rows = json.loads(call("--json", "ls", *columns, "disk")[1])
    assert [row["encryption_versions"] for row in rows] == [{"0": 2, "2": 2}, {"0": 1, "2": 4}]
    assert "encryption_versions" not in json.loads(call("--json", "ls")[1])[0]
    assert "0:1,2:4" in call("ls", *columns)[1]


def test_listing_other_fields_reads_no_block_map(call, uids, monkeypatch):
    monkeypatch.setattr("backyfs.metadata.maps.usage.unpack", None)
    monkeypatch.setattr("backyfs.metadata.maps.pageloader.unpack", None)
    for form in ((), ("-m",), ("--json",)):
        assert call(*form, "ls")[0] == 0
        assert call(*form, "ls", "-f", "uid,size")[0] == 0


def test_json_field_names_of_du_have_no_spaces(call, uids):
    rows = json.loads(call("--json", "du")[1])
    assert [row["uid"] for row in rows] == uids
    assert list(rows[0]) == [
        "uid", "name", "date", "real", "null", "dedup_own", "dedup_others", "individual", "est_space",
        "est_space_freed", "stored",
    ]  # fmt: skip
    assert rows[1] | {"date": None, "stored": None} == {
        "uid": uids[1], "name": "disk", "date": None, "real": 4 * BLOCK + 10, "null": BLOCK,
        "dedup_own": 0, "dedup_others": 4 * BLOCK + 10, "individual": 0,
        # two of its blocks are in all versions, three in two of them
        "est_space": round(2 * BLOCK / 3 + BLOCK / 2 + BLOCK / 2 + 10 / 2), "est_space_freed": 0, "stored": None,
    }  # fmt: skip


def test_du_as_a_table_has_names_and_units(call):
    status, out, _ = call("-r", "du")
    assert status == 0
    assert "Est. Space freed" in out
    assert "12.0 KiB" in out
    assert "zwei, \N{SNOWMAN}|" in out


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_du_draws_a_bar_for_each_version(config, encoding):
    done = subprocess.run(
        [BACKYFS, "-c", config, "du", "-f", "Real", "--plot"],
        env={"PYTHONIOENCODING": encoding, "PATH": "/usr/bin", "COLUMNS": "70"},
        capture_output=True, text=True, encoding="utf-8", check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert [line[:6] for line in lines[-4:-1]] == ["disk 2", "disk 2", "zwei, "]
    own, shared, hole = ("#", "=", ".") if encoding == "ascii" else ("█", "▒", "·")
    assert re.search(rf"disk \S+ +{own}+{shared}+ ", lines[-4])
    assert re.search(rf"disk \S+ +{shared}+[{hole}]+ ", lines[-3])
    assert lines[-1].startswith(f"{own} this version only   {shared} also in other versions")


# stats


def test_stats_with_chosen_fields_in_reverse_order_and_with_a_limit(call, uids):
    assert call("-m", "stats", "-f", "uid,name,blocks written,blocks dedup")[1].splitlines() == [
        "uid|name|blocks written|blocks dedup",
        f"{uids[0]}|disk|4|0",
        f"{uids[1]}|disk|3|2",
        f"{uids[2]}|zwei, \N{SNOWMAN}\\x7c|0|5",
    ]
    assert call("-m", "-s", "stats", "-f", "uid", "-l", 1)[1] == f"{uids[2]}\n"
    assert call("-m", "-s", "stats", "-f", "uid", "--limit", 0)[1] == ""
    assert call("-m", "-s", "stats", "-f", "uid", uids[1])[1] == f"{uids[1]}\n"


def test_stats_have_the_field_metadata_of_backy2(call, uids):
    assert call("-m", "stats", "-f", "metadata,uid", uids[0]) == (0, f"metadata|uid\nMetaData()|{uids[0]}\n", "")
    assert "MetaData()" in call("stats", "-f", "metadata", uids[0])[1]
    assert "metadata" not in call("stats")[1]


def test_the_list_of_fields_is_a_line_of_csv(call, uids):
    assert call("-m", "-s", "stats", "-f", ' uid ,"blocks dedup"', uids[0]) == (0, f"{uids[0]}|0\n", "")
    status, _, err = call("stats", "-f", '"uid')
    assert (status, err) == (1, "backyfs: error: '\"uid' is not a list of fields; give them as a,b\n")


def test_json_field_names_of_stats_have_no_spaces(call, uids):
    rows = json.loads(call("--json", "stats", uids[1][:13])[1])
    assert [(row["uid"], row["bytes_sparse"], row["size_bytes"]) for row in rows] == [(uids[1], BLOCK, 5 * BLOCK + 10)]
    assert 100 < rows[0]["stored"] < BLOCK  # the new data are two blocks of one letter each
    assert isinstance(rows[0]["duration_s"], float)


def test_stats_outlive_their_version(call, uids, config):
    from sqlalchemy import delete

    from backyfs.metadata.db.tables import version_pages, versions

    with opened(config) as repository, repository.database.write() as connection:
        connection.execute(delete(version_pages))
        connection.execute(delete(versions).where(versions.c.uid == uids[0]))
    assert call("-m", "-s", "stats", "-f", "uid", uids[0])[1] == f"{uids[0]}\n"
    assert call("-m", "-s", "stats", "-f", "uid", uids[0][:8])[1] == f"{uids[0]}\n"


def test_stats_draw_growth_deduplication_and_rates(call):
    status, out, _ = call("stats", "-f", "name", "--plot")
    assert status == 0
    for title in ("Growth: new bytes so far", "Deduplication: ", "Rate of reading"):
        assert f"\n{title}" in out
    assert out.endswith("3 backups, the oldest at the left\n")


# diff-meta


def test_differences_are_listed_block_by_block(call, uids):
    status, out, err = call("diff-meta", uids[0], uids[1])
    assert (status, err) == (0, "")
    assert out == "SAME      0\nDIFF      1\nSAME      2\nDIFF      3\nNEW RIGHT 4\nNEW RIGHT 5\n"
    assert call("-m", "diff-meta", "--all", uids[0], uids[1])[1] == out
    assert call("diff-meta", uids[1], uids[0])[1].endswith("NEW LEFT  4\nNEW LEFT  5\n")


def test_machine_output_stops_where_backy2_does_and_says_so(call, uids):
    assert call("-m", "diff-meta", uids[0], uids[1]) == (
        0,
        "SAME      0\nDIFF      1\nSAME      2\nDIFF      3\n",
        "backyfs: block 4 and maybe more are in one version only, and not listed; see --all\n",
    )


def test_differences_in_json_are_ranges(call, uids):
    assert json.loads(call("--json", "diff-meta", uids[1], uids[2])[1]) == [{"first": 0, "count": 6, "state": "same"}]
    assert json.loads(call("--json", "diff-meta", "--map", uids[1], uids[2])[1])[1] == {
        "first": 4, "count": 1, "state": "hole",
    }  # fmt: skip


@pytest.mark.parametrize(("encoding", "line"), [("utf-8", "░█░█▓▓"), ("ascii", "-#-#++")])
def test_differences_can_be_drawn_as_a_map(config, uids, encoding, line):
    done = subprocess.run(
        [BACKYFS, "-c", config, "diff-meta", "--map", uids[0], uids[1]],
        env={"PYTHONIOENCODING": encoding, "PATH": "/usr/bin"},
        capture_output=True, text=True, encoding=encoding, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        line,
        "one character: 1 block, 4.0 KiB",
        f"{line[0]} unchanged: 2 (8.0 KiB)",
        f"{line[4]} new, in one version only: 2 (8.0 KiB)",
        f"{line[1]} changed: 2 (8.0 KiB)",
    ]


# jobs


def test_only_this_command_is_running(call):
    assert call("-m", "jobs") == (0, "host|pid|command|started|beat|progress|versions\n", "")
    assert json.loads(call("--json", "jobs")[1]) == []


def test_running_commands_are_listed_with_the_versions_they_use(call, uids, config):
    with opened(config) as repository, Job(repository.database, spec("mount /mnt")) as job:
        with repository.database.read() as connection:
            version = list_versions(connection)[0]
        job.hold(version.id)
        [row] = json.loads(call("--json", "jobs")[1])
        assert (row["command"], row["versions"], row["progress"]) == ("mount /mnt", [uids[0]], "")
        assert 0 <= row["beat"] < 10
        assert call("-m", "-s", "jobs", "-f", "command,versions")[1] == f"mount /mnt|{uids[0]}\n"
        assert "mount /mnt" in call("jobs")[1]
    assert json.loads(call("--json", "jobs")[1]) == []


# Failure


@pytest.mark.parametrize("words", [["du"], ["stats"], ["diff-meta", UNKNOWN]])
def test_an_unknown_version_is_an_error(call, words):
    status, out, err = call(*words, UNKNOWN)
    assert (status, out) == (VersionNotFoundError.exit_status, "")
    assert err == f"backyfs: error: no version has a uid that begins with {UNKNOWN}; `backyfs ls` lists the versions\n"


@pytest.mark.parametrize("words", [["du"], ["stats"], ["jobs"], ["diff-meta", UNKNOWN, UNKNOWN]])
def test_the_wrong_key_and_a_missing_storage_are_errors(config, call, words):
    storage = config.parent / "data"
    storage.rename(config.parent / "elsewhere")
    status, out, err = call(*words)
    assert (status, out) == (StorageError.exit_status, "")
    assert err.startswith("backyfs: error: storage directory ")
    (config.parent / "elsewhere").rename(storage)
    (config.parent / "backyfs.key").write_text("ab" * 32)
    status, out, err = call(*words)
    assert (status, out) == (WrongKeyError.exit_status, "")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "function"),
    [
        (["du"], "backyfs.cli.commands.du.disk_usage"),
        (["stats"], "backyfs.cli.commands.stats.backup_statistics"),
        (["jobs"], "backyfs.cli.commands.jobs.running_jobs"),
        (["diff-meta"], "backyfs.cli.commands.diff_meta.compared_versions"),
    ],
)
def test_an_interrupt_ends_a_command_without_a_traceback(call, uids, monkeypatch, words, function):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(function, interrupted)
    status, out, err = call(*words, *(uids[:2] if words == ["diff-meta"] else []))
    assert (status, out, err) == (InterruptedByUser.exit_status, "", "backyfs: error: interrupted\n")


@pytest.mark.parametrize("command", ["du", "stats", "jobs"])
def test_an_unknown_field_is_reported(call, command):
    status, _, err = call(command, "-f", "nothing")
    assert status == UsageError.exit_status
    assert "there is no field 'nothing'; the fields are " in err


def test_a_limit_must_not_be_negative(call):
    assert call("stats", "-l", "-1")[0] == UsageError.exit_status


@pytest.mark.parametrize("words", [["du"], ["stats"], ["jobs"], ["du", "--plot"], ["stats", "--plot"]])
def test_a_reader_that_stops_early_is_not_an_error(config, words):
    read_end = subprocess.Popen(
        [BACKYFS, "-c", config, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={"PATH": "/usr/bin"}
    )
    assert read_end.stdout is not None
    assert read_end.stderr is not None
    read_end.stdout.close()
    err = read_end.stderr.read()
    read_end.stderr.close()
    assert b"Traceback" not in err
    assert b"unexpected" not in err
    read_end.wait()


def test_ten_versions_that_share_a_block_each_have_a_tenth_of_it(config, call, tmp_path):
    image = random_image(tmp_path / "other", 2 * BLOCK)  # begins like the first image
    with opened(config) as repository:
        for _ in range(7):
            back_up(repository, image, name="again")
    rows = json.loads(call("--json", "du")[1])
    assert [row["est_space"] for row in rows if row["name"] == "again"] == [round(BLOCK / 10 + BLOCK / 8)] * 7
