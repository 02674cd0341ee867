"""`check-config` and `initdb`, with every part of a repository broken in turn."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import stat
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from backyfs.cli.main import run
from backyfs.cli.remedies import render_remedy
from backyfs.engine.setup import check
from backyfs.engine.setup.check import check_configuration
from backyfs.engine.setup.findings import Grade
from backyfs.metadata.db.tables import blobs, versions
from tests.support.images import random_image
from tests.support.repositories import BLOCK, back_up, make_repository, opened

FIXTURES = Path(__file__).parents[1] / "fixtures"
CHECKS = ["configuration", "permissions", "log", "database", "key", "encryption", "storage", "space", "clock", "fuse"]


@pytest.fixture
def found(call):
    """Run `check-config`; return its exit status and the grade and message of each check."""

    def found():
        status, out, err = call("--json", "check-config")
        assert err == ""
        results: dict[str, list[tuple[str, str]]] = {}
        for row in json.loads(out):
            results.setdefault(row["check"], []).append((row["grade"], row["message"]))
        return status, results

    return found


def change(config, old, new):
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))


def files_below(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_sound_repository_passes_every_check(found):
    status, results = found()
    assert status == 0
    assert list(results) == CHECKS
    assert {grade for name in CHECKS if name != "fuse" for grade, _ in results[name]} == {"ok"}


def test_the_output_has_a_line_for_each_check(call, config):
    status, out, err = call("check-config")
    assert (status, err) == (0, "")
    assert [line.split()[1] for line in out.splitlines()][: len(CHECKS) - 1] == CHECKS[:-1]
    assert out.splitlines()[0] == f"ok        configuration  {config}"


def test_machine_output_separates_fields_with_bars(call, config):
    _, out, _ = call("-m", "check-config")
    assert out.splitlines()[:2] == ["check|grade|message", f"configuration|ok|{config}"]


def test_a_check_leaves_nothing_behind(found, config):
    before = files_below(config.parent / "data")
    found()
    assert files_below(config.parent / "data") == before


def test_every_mistake_in_the_configuration_is_reported_with_its_place(found, config):
    change(config, "block_size:", "deduplication: perhaps\nblock_size: 1\nlock_dir:")
    with config.open("a") as text:
        text.write("[io_rbd]\nsimultaneous_reads: many\n[daily]\ninterval: many\nkeep: 1\nsla: 1d\n")
    status, results = found()
    assert status == 1
    text = config.read_text().splitlines()
    lines = [number for number, line in enumerate(text, 1) if line.endswith((": perhaps", "size: 1", ": many"))]
    assert len(lines) == 4
    assert [grade for grade, _ in results["configuration"]] == ["failed"] * 4
    for line, (_, message) in zip(lines, results["configuration"], strict=True):
        assert message.startswith(f"{config}, line {line}: [")
    assert "[DEFAULTS] deduplication: deduplication is 'perhaps'; allowed: 1, 0" in results["configuration"][0][1]
    assert results["storage"] == [("skipped", "cannot be checked until the configuration is right")]
    assert [grade for grade, _ in results["clock"]] == ["ok"]


def test_options_that_exclude_each_other_are_a_mistake(found, config):
    change(config, "encryption_version:", "encryption_key_command: cat key\nencryption_version:")
    status, results = found()
    assert status == 1
    assert "are set together; allowed: one of them" in results["configuration"][0][1]


def test_a_missing_configuration_is_a_failure(tmp_path, capsys):
    assert run(["-c", str(tmp_path / "none.cfg"), "-m", "check-config"]) == 1
    out = capsys.readouterr().out
    assert f"configuration|failed|{tmp_path}/none.cfg: does not exist; run `backyfs init`" in out


def test_an_unknown_key_is_a_warning(found, config):
    change(config, "block_size:", "blok_size: 1\nblock_size:")
    status, results = found()
    assert status == 0
    assert results["configuration"][0][0] == "warning"
    assert "did you mean block_size?" in results["configuration"][0][1]


def test_a_block_size_of_another_repository_is_a_failure(found, config):
    change(config, f"block_size: {BLOCK}", "block_size: 8192")
    status, results = found()
    assert status == 1
    assert "this repository was created with 4096, which cannot change" in results["database"][0][1]
    assert results["storage"][0][0] == "ok"


def test_the_wrong_key_has_the_status_for_keys(found, config):
    (config.parent / "backyfs.key").write_text("ab" * 32)
    status, results = found()
    assert status == 3
    assert "is not the key of this repository, which is" in results["key"][0][1]
    assert results["storage"][0][0] == "ok"


def test_a_missing_key_file_has_the_status_for_keys(found, config):
    (config.parent / "backyfs.key").unlink()
    status, results = found()
    assert status == 3
    assert results["key"] == [
        ("failed", f"key file {config.parent}/backyfs.key cannot be read: No such file or directory")
    ]


def test_a_check_does_not_give_a_plain_repository_a_key(tmp_path, capsys):
    config = make_repository(tmp_path / "plain", encrypted=False)
    (tmp_path / "key").write_text("ab" * 32)
    os.chmod(tmp_path / "key", 0o600)
    change(config, "encryption_version: 0", f"encryption_version: 1\nencryption_key_file: {tmp_path}/key")
    assert run(["-c", str(config), "-m", "check-config"]) == 0
    assert "becomes the key of this repository with the next command" in capsys.readouterr().out
    with sqlite3.connect(config.parent / "backyfs.sqlite") as database:
        assert database.execute("SELECT count(*) FROM key_slots").fetchone() == (0,)
    database.close()


def test_a_missing_storage_has_the_status_for_storages(found, config):
    shutil.rmtree(config.parent / "data")
    status, results = found()
    assert status == 6
    assert "does not exist; is its file system mounted?" in results["storage"][0][1]
    assert results["key"][0][0] == "ok"


def test_a_storage_that_loses_bytes_is_detected(found, config, monkeypatch):
    from backyfs.storage.directory import DirectoryStorage
    from backyfs.storage.keys import is_blob

    get = DirectoryStorage.get
    monkeypatch.setattr(
        DirectoryStorage, "get", lambda self, key, **most: b"other" if is_blob(key) else get(self, key, **most)
    )
    status, results = found()
    assert status == 6
    assert results["storage"] == [
        ("failed", f"{config.parent}/data returned other bytes of a test object than were stored")
    ]


def test_a_storage_that_deletes_nothing_is_detected(found, config, monkeypatch):
    from backyfs.storage.directory import DirectoryStorage

    monkeypatch.setattr(DirectoryStorage, "delete", lambda *_: None)
    status, results = found()
    assert status == 6
    assert "still exists after it was deleted; delete it by hand" in results["storage"][0][1]


def test_the_null_storage_is_a_warning(found, config):
    change(config, "type: file\n", "type: null\n")
    _, results = found()
    assert results["storage"] == [
        ("warning", "it is of type null and keeps nothing; configure a storage of another type")
    ]


@pytest.mark.parametrize("key", ["", f"encryption_key: {'ab' * 32}\n"])
def test_blocks_of_backy2_that_no_key_opens_are_a_warning(tmp_path, capsys, key):
    shutil.copytree(FIXTURES / "v1-sqlite", tmp_path / "adopted")
    config = tmp_path / "adopted" / "backy.cfg"
    assert run(["-c", str(config), "upgrade", "--ignore-processes"]) == 0
    change(config, f"encryption_key: {'decafbad' * 8}\nencryption_version: 1", f"{key}encryption_version: 0")
    capsys.readouterr()
    assert run(["-c", str(config), "-m", "check-config"]) == 0
    assert "key|warning|there are encrypted blocks, and " in capsys.readouterr().out


def test_a_missing_database_is_a_failure_and_the_key_cannot_be_checked_without_it(found, config):
    (config.parent / "backyfs.sqlite").unlink()
    status, results = found()
    assert status == 1
    (database,) = results["database"]
    assert database[0] == "failed"
    assert database[1].startswith(f"{config.parent}/backyfs.sqlite holds no repository, but the storage holds a copy")
    assert "run `backyfs recover` to rebuild the database" in database[1]
    assert results["storage"][0][0] == "skipped"
    assert results["key"][0][0] == "skipped"
    assert not (config.parent / "backyfs.sqlite").exists()


def test_a_database_of_a_newer_release_is_a_failure(found, config):
    with sqlite3.connect(config.parent / "backyfs.sqlite") as database:
        database.execute("UPDATE alembic_version SET version_num = 'backyfs_9999'")
    database.close()
    status, results = found()
    assert status == 1
    assert "which is newer than this program's" in results["database"][0][1]


@pytest.mark.parametrize(
    ("key", "status", "answer"),
    [("decafbad" * 8, 0, "opens the blocks"), ("ab" * 32, 3, "does not open the blocks; configure the one that")],
)
def test_a_database_of_backy2_is_a_warning_and_is_not_changed(tmp_path, capsys, key, status, answer):
    shutil.copytree(FIXTURES / "v1-sqlite", tmp_path / "adopted")
    config = tmp_path / "adopted" / "backy.cfg"
    config.write_text(config.read_text().replace("decafbad" * 8, key))
    before = (config.parent / "backy.sqlite").read_bytes()
    assert run(["-c", str(config), "-m", "check-config"]) == status
    out = capsys.readouterr().out
    assert f"database|warning|{config.parent}/backy.sqlite has the schema of backy2, 30349b678801 with " in out
    assert answer in out
    assert (config.parent / "backy.sqlite").read_bytes() == before


def test_a_key_that_others_can_read_is_a_warning(config):
    os.chmod(config.parent / "backyfs.key", 0o644)
    status, results = found_quietly(config)
    assert status == 0
    key = f"{config.parent}/backyfs.key"
    assert results["permissions"] == [
        ("warning", f"{key} holds a key and can be read by others; run `chmod 600 {key}`")
    ]


def found_quietly(config):
    report = check_configuration(str(config), {}, now=datetime.now(UTC))
    results: dict[str, list[tuple[str, str]]] = {}
    for one in report.findings:
        message = one.message if one.remedy is None else f"{one.message}; {render_remedy(one.remedy)}"
        results.setdefault(one.check, []).append((one.grade.value, message))
    return report.exit_status, results


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o644, True), (0o640, True)])
def test_a_configuration_that_contains_the_key_must_not_be_readable_by_others(config, mode, warned):
    digits = (config.parent / "backyfs.key").read_text().strip()
    change(config, f"encryption_key_file: {config.parent}/backyfs.key", f"encryption_key: {digits}")
    os.chmod(config, mode)
    _, results = found_quietly(config)
    assert (f"{config} holds secrets and can be read by others; run `chmod 600 {config}`" in str(results)) is warned
    assert digits not in str(results)


def test_a_configuration_that_others_can_change_is_a_warning(config):
    os.chmod(config, stat.S_IMODE(config.stat().st_mode) | 0o020)
    _, results = found_quietly(config)
    assert "can be changed by others, and names commands to run" in results["permissions"][0][1]


def test_a_log_file_that_cannot_be_written_is_a_failure(found, config):
    change(config, f"logfile: {config.parent}/backyfs.log", "logfile: /nonexistent/b.log")
    status, results = found()
    assert status == 1
    assert results["log"][0][0] == "failed"


@pytest.mark.parametrize(
    ("free_mib", "files", "grade"), [(10_000, 5, "ok"), (500, 5, "warning"), (10, 5, "failed"), (10_000, 0, "failed")]
)
def test_little_free_space_is_reported(config, monkeypatch, free_mib, files, grade):
    block = 4096
    about = os.statvfs_result((block, block, 100_000_000, 0, free_mib * 256, 1000, files, files, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: about)
    status, results = found_quietly(config)
    assert [one[0] for one in results["space"]] == [grade]
    assert status == (1 if grade == "failed" else 0)


@pytest.mark.parametrize("year", [1970, 2023, 2101])
def test_a_clock_that_is_years_off_is_a_failure(config, year):
    report = check_configuration(str(config), {}, now=datetime(year, 1, 1, tzinfo=UTC))
    assert next(one.grade for one in report.findings if one.check == "clock") is Grade.FAILED


def test_versions_dated_in_the_future_are_a_warning(config, tmp_path):
    with opened(config) as repository:
        back_up(repository, random_image(tmp_path / "image", BLOCK))
        with repository.database.write() as connection:
            connection.execute(update(versions).values(created_at=datetime.now(UTC) + timedelta(days=400)))
    _, results = found_quietly(config)
    assert [grade for grade, _ in results["clock"]] == ["ok", "warning"]
    assert "1 versions are dated in the future" in results["clock"][1][1]


def test_the_clock_of_the_database_server_is_compared(config, monkeypatch):
    monkeypatch.setattr(check, "database_time", lambda _: datetime.now(UTC) - timedelta(seconds=90))
    _, results = found_quietly(config)
    assert "the clock of the database server is 90 s behind the clock of this host" in results["clock"][1][1]


@pytest.fixture
def stored(config, tmp_path):
    """Back up three blocks; return a function that changes their encryption version in the database."""
    with opened(config) as repository:
        back_up(repository, random_image(tmp_path / "image", 3 * BLOCK))

    def stored(*versions):
        with opened(config) as repository, repository.database.write() as connection:
            for number, version in enumerate(versions, 1):
                connection.execute(update(blobs).where(blobs.c.id == number).values(encryption_version=version))

    return stored


def test_plain_blocks_are_a_warning_when_encryption_is_on(found, stored):
    stored(0, 0, 2)
    status, results = found()
    assert status == 0
    assert results["encryption"] == [
        ("warning", "2 blocks are stored plain though encryption is on; run `backyfs migrate-encryption --all`"),
        ("ok", "new blocks get encryption version 2"),
    ]


def test_blocks_of_older_encryption_versions_are_ok(found, stored):
    stored(1, 1, 2)
    message = (
        "new blocks get encryption version 2; 2 blocks are encrypted otherwise (2 of version 1), which is not an "
        "error; run `backyfs migrate-encryption --all` to re-encrypt them"
    )
    assert found()[1]["encryption"] == [("ok", message)]


def test_blocks_awaiting_cleanup_are_not_counted(found, stored, config):
    stored(0, 2, 2)
    with opened(config) as repository, repository.database.write() as connection:
        connection.execute(update(blobs).where(blobs.c.id == 1).values(doomed_at=datetime.now(UTC)))
    assert found()[1]["encryption"] == [("ok", "new blocks get encryption version 2")]


@pytest.mark.parametrize("configured", ["", "encryption_version: 1"])
def test_the_encryption_version_reported_for_new_blocks_is_the_one_in_use(found, stored, config, configured):
    change(config, "encryption_version: 2", configured)
    new = 1 if configured else 2
    others = {1: [1, 1, 1], 2: [2, 2, 2]}[new]
    stored(*others)
    assert found()[1]["encryption"] == [("ok", f"new blocks get encryption version {new}")]


def test_plain_blocks_of_a_plain_repository_are_ok(found, stored, config):
    change(config, "encryption_version: 2", "encryption_version: 0")
    stored(0, 0, 1)
    assert found()[1]["encryption"] == [
        ("ok", "new blocks are stored plain (encryption_version 0), and 1 block is encrypted, as earlier")
    ]


def test_missing_fuse_is_a_warning(config, monkeypatch):
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path != "/dev/fuse" and exists(path))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    status, results = found_quietly(config)
    assert status == 0
    assert [grade for grade, _ in results["fuse"]] == ["warning", "warning"]


def test_a_database_server_is_checked(request, tmp_path):
    pytest.importorskip("psycopg")
    server = request.getfixturevalue("postgresql_server")
    url = server.new_database()
    config = tmp_path / "b.cfg"
    config.write_text(
        f"[DEFAULTS]\nencryption_version: 0\n[MetaBackend]\nengine: {url}\n"
        f"[DataBackend]\ntype: file\npath: {tmp_path}/data\n"
    )
    os.chmod(config, 0o600)
    assert found_quietly(config)[0] == 1
    assert run(["-c", str(config), "initdb"]) == 0
    status, results = found_quietly(config)
    assert status == 0
    assert results["clock"][1:] == []
    server.drop(url)


# initdb


def adopted(tmp_path):
    """Write a configuration, as an administrator does, and nothing else."""
    key = tmp_path / "key"
    key.write_text("cd" * 32)
    key.chmod(0o600)
    config = tmp_path / "backy.cfg"
    config.write_text(
        f"[DEFAULTS]\nblock_size: 8192\nencryption_version: 1\nencryption_key_file: {key}\n[MetaBackend]\n"
        f"engine: sqlite:///{tmp_path}/db.sqlite\n[DataBackend]\ntype: backy2.data_backends.file\npath: {tmp_path}/d\n"
    )
    return config


def test_initdb_creates_everything_the_configuration_names(tmp_path, capsys):
    config = adopted(tmp_path)
    assert run(["-c", str(config), "initdb"]) == 0
    out = capsys.readouterr().out
    assert f"was created in {tmp_path}/db.sqlite" in out
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700
    with opened(config) as repository:
        assert repository.block_size == 8192
        assert back_up(repository, random_image(tmp_path / "image", 9000)).version.size_bytes == 9000


def test_initdb_prints_nothing_with_m_and_a_full_report_as_json(tmp_path, capsys):
    assert run(["-c", str(adopted(tmp_path)), "-m", "initdb"]) == 0
    assert capsys.readouterr() == ("", "")
    (tmp_path / "db.sqlite").unlink()
    shutil.rmtree(tmp_path / "d")
    assert run(["-c", str(adopted(tmp_path)), "--json", "initdb"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["database"], made["block_size"]) == (f"{tmp_path}/db.sqlite", 8192)
    assert "cdcd" not in made["key"]


def test_initdb_does_not_touch_a_repository(call, config, tmp_path):
    with opened(config) as repository:
        back_up(repository, random_image(tmp_path / "image", BLOCK))
    before = files_below(config.parent / "data")
    status, out, err = call("initdb")
    assert (status, err) == (0, "")
    assert re.match(r"repository \S+ already exists in ", out)
    assert files_below(config.parent / "data") == before
    assert call("-m", "-s", "ls")[1].count("\n") == 1


def test_initdb_does_not_touch_a_database_that_has_other_tables(call, config):
    (config.parent / "backyfs.sqlite").unlink()
    with closing(sqlite3.connect(config.parent / "backyfs.sqlite")) as database:
        database.execute("CREATE TABLE mine (id INTEGER)")
    shutil.rmtree(config.parent / "data")
    status, out, err = call("initdb")
    assert (status, out) == (1, "")
    assert "already contains tables; name an empty database" in err
    with closing(sqlite3.connect(config.parent / "backyfs.sqlite")) as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("mine",)]


def test_initdb_without_its_key_creates_nothing(tmp_path, capsys):
    config = adopted(tmp_path)
    (tmp_path / "key").unlink()
    assert run(["-c", str(config), "initdb"]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backy.cfg"]
