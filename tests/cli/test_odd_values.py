"""Impossible values in the database: each is reported by name and hides nothing else."""

from __future__ import annotations

import json
import re
import resource
import shutil
import sqlite3
import subprocess
from array import array
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from backyfs.cli.main import run
from backyfs.metadata.db.columns import CheckedType
from backyfs.metadata.db.database import Database
from backyfs.metadata.db.engines import new_engine
from backyfs.metadata.db.idarray import SparseArray
from backyfs.metadata.db.tables import metadata
from backyfs.metadata.records.versions import find_version, is_last_valid, list_versions
from tests.support.images import random_image
from tests.support.program import BACKYFS
from tests.support.repositories import BLOCK, back_up, change_database, copy_repository, make_repository, opened

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.services.postgresql import PostgresqlServer

DAMAGE = 20
LIMIT = 2 << 30  # of address space
FAR = (1 << 62) + 1


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made")
    return with_versions(make_repository(directory / "repository"), directory)


@pytest.fixture
def config(made: Path, tmp_path: Path) -> Path:
    shutil.copy(made.parent.with_name("image"), tmp_path)
    return copy_repository(made.parent, tmp_path / "repository")


def with_versions(config: Path, directory: Path) -> Path:
    """Back up an image as three versions."""
    image = random_image(directory / "image", 3 * BLOCK)
    with opened(config) as repository:
        for name in ("first", "second", "third"):
            back_up(repository, image, name, tags=("daily",))
    return config


def allow_null(config: Path) -> None:
    tables = "UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '') WHERE type = 'table'"
    change_database(config, "PRAGMA writable_schema = ON", tables)


def test_every_column_except_ids_and_row_keys_has_a_rule() -> None:
    plain = {
        (table.name, column.name)
        for table in metadata.sorted_tables
        for column in table.columns
        if not isinstance(column.type, CheckedType)
    }
    assert plain == {
        (table.name, "id") for table in metadata.sorted_tables if "id" in table.columns
    } | {("blob_refs", "blob_id"), ("blob_checks", "blob_id"), ("damaged_versions", "version_id")}


# A damaged row does not hide the others


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("uid", "'../../evil'"), ("uid", "''"), ("uid", "x'ff'"), ("uid", "NULL"), ("created_at", "'yesterday'"),
        ("created_at", "5"), ("created_at", "'10000-01-01 00:00:00'"), ("created_at", "''"), ("created_at", "NULL"),
        ("name", "x'00'"), ("name", "CAST(x'ff' AS TEXT)"), ("name", "'a' || char(0)"),
        ("name", "printf('%3000s', '')"),
        ("snapshot_name", "x'00'"), ("size_bytes", "-1"), ("size_bytes", "'many'"), ("size_bytes", "1.5"),
        ("status", "'perfect'"), ("status", "x'00'"), ("protected", "2"), ("protected", "'no'"),
        ("expire_at", "'never'"),
    ],
)  # fmt: skip
def test_ls_lists_the_other_versions_and_reports_the_damaged_one(
    config: Path, call: Callable[..., tuple[int, str, str]], column: str, value: str
) -> None:
    allow_null(config)
    change_database(config, f"UPDATE versions SET {column} = {value} WHERE id = 2")
    status, out, err = call("--json", "ls")
    assert status == DAMAGE
    assert [version["name"] for version in json.loads(out)] == ["first", "third"]
    assert f"table versions, row with id 2, uid {'' if column == 'uid' else chr(39)}" in err
    assert f" has an impossible {column}: " in err
    assert "`backyfs recover`" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", ["du", "jobs", "stats", "scrub --all", "cleanup --full"])
def test_an_odd_size_does_not_crash_any_command(
    config: Path, call: Callable[..., tuple[int, str, str]], words: str
) -> None:
    change_database(config, "UPDATE versions SET size_bytes = 'many' WHERE id = 2")
    status, _, err = call("-m", *words.split())
    assert status in {0, DAMAGE}
    assert "unexpected" not in err


def test_a_command_that_names_the_damaged_version_is_refused(
    config: Path, call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    change_database(config, "UPDATE versions SET status = 'perfect' WHERE id = 2")
    status, _, err = call("restore", "second@latest", tmp_path / "target")
    assert status != 0
    with closing(sqlite3.connect(config.parent / "backyfs.sqlite")) as connection:
        [(uid,)] = connection.execute("SELECT uid FROM versions WHERE id = 2").fetchall()
    target = tmp_path / "target"
    for words in (["restore", uid, target], ["protect", uid], ["rm", "--force", uid], ["export", uid, target]):
        status, _, err = call(*words)
        assert status == DAMAGE
        assert f"row with id 2, uid '{uid}', name 'second' has an impossible status: 'perfect'" in err
    assert not target.exists()


def test_other_versions_are_restored(config: Path, call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    change_database(config, "UPDATE versions SET status = 'perfect', created_at = 5 WHERE id = 2")
    assert call("restore", "first@latest", tmp_path / "target")[0] == 0
    assert (tmp_path / "target").read_bytes() == (tmp_path / "image").read_bytes()


def test_a_damaged_row_costs_only_its_block(
    config: Path, call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    change_database(config, "UPDATE blobs SET uid = '../../../evil' WHERE id = (SELECT min(id) FROM blobs)")
    status, _, err = call("restore", "first@latest", tmp_path / "target")
    assert status == DAMAGE
    assert "table blobs, row with id 1, uid '../../../evil' has an impossible uid" in err
    assert (tmp_path / "target").read_bytes()[BLOCK:] == (tmp_path / "image").read_bytes()[BLOCK:]


@pytest.mark.parametrize(
    "change_row", ["page_no = 'x'", "page_no = 7", "page_no = -1", "page_id = 'x'", "page_id = 99"]
)
def test_a_damaged_block_map_is_never_restored_as_zeros(
    config: Path, call: Callable[..., tuple[int, str, str]], tmp_path: Path, change_row: str
) -> None:
    change_database(config, f"UPDATE version_pages SET {change_row} WHERE version_id = 1")
    status, _, err = call("restore", "first@latest", tmp_path / "target")
    assert status in {1, DAMAGE}
    assert "unexpected" not in err
    assert "damaged" in err


def test_an_object_does_not_become_an_orphan_when_the_uid_in_its_row_is_damaged(
    config: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    objects = sorted((config.parent / "data").rglob("*.blob"))
    change_database(config, "UPDATE blobs SET uid = 'x' WHERE id = 1")
    status, _, err = call("cleanup", "--full", "--dangerous-force")
    assert status == DAMAGE
    assert "has an impossible uid: 'x'" in err
    assert sorted((config.parent / "data").rglob("*.blob")) == objects


def test_a_job_with_a_damaged_row_blocks_no_command(config: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    change_database(
        config,
        "INSERT INTO jobs (host, scope, pid, pid_started, command, progress, started_at, heartbeat_at) "
        "VALUES ('h', 's', 'x', 1, 'backup', '', 'yesterday', 'soon')",
        "INSERT INTO job_versions SELECT id, 1 FROM jobs",
    )
    status, _, err = call("jobs")
    assert status == DAMAGE
    assert "table jobs, row with id " in err
    call("rm", "--force", "first@latest")
    assert call("jobs")[0] == 0
    assert "first" not in call("ls")[1]


@pytest.mark.parametrize("column", ["kdf", "kdf_parameters", "key_check", "wrapped_key", "created_at", "label"])
def test_a_damaged_key_slot_does_not_hide_the_one_that_opens(
    config: Path, call: Callable[..., tuple[int, str, str]], tmp_path: Path, column: str
) -> None:
    (tmp_path / "second.key").write_text("5e" * 32)
    (tmp_path / "second.key").chmod(0o600)
    assert call("key", "add", "second", "--key-file", tmp_path / "second.key")[0] == 0
    change_database(config, f"UPDATE key_slots SET {column} = 5.5 WHERE label = 'second'")
    status, out, _ = call("ls")
    assert status in {0, DAMAGE}
    assert "first" in out
    status, out, _ = call("key", "list")
    assert status in {0, DAMAGE}
    assert "configuration" in out


def test_a_repository_whose_key_slots_are_all_damaged_does_not_look_plain(
    config: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    change_database(config, "UPDATE key_slots SET key_check = 5.5")
    status, out, err = call("ls")
    assert (status, out) == (DAMAGE, "")
    assert "has an impossible key_check" in err


@pytest.mark.parametrize("value", ["[" * 1000, "{}", "null", '{"salt": 1}', "[1e999]"])
def test_nested_or_odd_json_in_a_key_slot_makes_it_a_damaged_slot(
    config: Path, call: Callable[..., tuple[int, str, str]], tmp_path: Path, value: str
) -> None:
    (tmp_path / "words").write_text("a passphrase")
    (tmp_path / "words").chmod(0o600)
    assert call("key", "add", "words", "--passphrase-file", tmp_path / "words")[0] == 0
    change_database(config, f"UPDATE key_slots SET kdf_parameters = '{value}' WHERE label = 'words'")
    lines = [line for line in config.read_text().splitlines() if "encryption_key_file" not in line]
    passphrase = f"[DEFAULTS]\nencryption_passphrase_file: {tmp_path / 'words'}"
    config.write_text("\n".join(lines).replace("[DEFAULTS]", passphrase))
    status, _, err = call("ls")
    assert status == DAMAGE
    assert "key slot 'words'" in err


def test_forget_removes_nothing_while_a_tag_is_damaged(
    config: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    with config.open("a") as file:
        file.write("\n[daily]\ninterval: 1d\nkeep: 0\nsla: 3h\n")
    change_database(config, "UPDATE tags SET name = x'00' WHERE id = 1")
    status, _, err = call("forget", "--force")
    assert status == DAMAGE
    assert "a tag in the database is damaged" in err
    assert call("--json", "ls")[1].count('"uid"') == 3


def test_a_damaged_version_is_not_counted_as_the_last_valid_one(
    config: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    change_database(config, "UPDATE versions SET name = 'first'", "UPDATE versions SET created_at = 'x' WHERE id > 1")
    with closing(sqlite3.connect(config.parent / "backyfs.sqlite")) as connection:
        [(uid,)] = connection.execute("SELECT uid FROM versions WHERE id = 1").fetchall()
    with opened(config) as repository, repository.database.read() as connection:
        assert is_last_valid(connection, find_version(connection, uid))


# Catalog notes


@pytest.mark.parametrize(
    "note", ["kind = 'blob', uid = 'x'", "kind = 'version', uid = '../x'", "kind = x'00'", "token = 'x'"]
)
def test_an_odd_note_is_reported_until_the_whole_catalog_is_written(
    config: Path, call: Callable[..., tuple[int, str, str]], note: str
) -> None:
    change_database(config, "INSERT INTO catalog_notes VALUES ('page', '0f5b2c1e-9a64-4f0b-8a57-6b1de0b5a0f3', 7)")
    change_database(config, f"UPDATE catalog_notes SET {note} WHERE token = 7")
    assert call("protect", "first@latest")[0] in {0, DAMAGE}
    call("catalog", "push", "--all")
    assert call("protect", "second@latest")[0] == 0


# Metrics


def test_the_metrics_after_a_backup_do_not_end_in_a_traceback(
    config: Path, call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    change_database(config, "UPDATE versions SET created_at = 'x' WHERE id = 2", "UPDATE stats SET duration_s = 'x'")
    status, _, err = call("--metrics-file", tmp_path / "metrics", "backup", tmp_path / "image", "fourth")
    assert status in {0, DAMAGE}
    assert "unexpected" not in err
    written = (tmp_path / "metrics").read_text()
    for name in ("first", "third", "fourth"):
        assert re.search(rf'backyfs_versions\{{.*name="{name}",status="valid"\}} 1.0', written)


# Ids


@pytest.mark.parametrize(
    ("words", "row_id"),
    [("du", 900_000_000), ("du", FAR), ("cleanup --full --dry-run", 900_000_000), ("scrub --all", FAR)],
)
def test_a_huge_id_takes_no_memory(config: Path, words: str, row_id: int) -> None:
    change_database(
        config,
        "INSERT INTO blobs (id, uid, size, encryption_version, valid, created_at) "
        f"VALUES ({row_id}, 'abcdefgh', 4096, 0, 1, '2026-01-01 00:00:00.000000')",
    )
    done = subprocess.run(
        [BACKYFS, "-c", str(config), "-m", *words.split()],
        capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_sparse_array_has_the_ids_it_was_made_with() -> None:
    numbers = SparseArray(array("q", [1, 5, 1 << 62]), "q", 3)
    numbers[5] += 1
    assert [numbers[1], numbers[5], numbers[1 << 62]] == [3, 4, 3]
    for row_id in (0, 2, 6, (1 << 62) + 1):
        with pytest.raises(IndexError):
            numbers[row_id]


# Servers check types but not content


def test_odd_text_and_dates_from_a_server_are_reported(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_versions(make_repository(tmp_path / "repository", database=database_url), tmp_path)
    odd = {"first": "uid = '../../evil'"}
    engine = new_engine(database_url)
    if engine.dialect.name == "postgresql":
        odd["second"] = "created_at = 'infinity'"
    elif engine.dialect.name == "mysql":
        odd["second"] = "created_at = '0000-00-00 00:00:00'"
    with engine.begin() as connection:
        if engine.dialect.name == "mysql":
            connection.execute(text("SET SESSION sql_mode = ''"))
        for name, setting in odd.items():
            connection.execute(text(f"UPDATE versions SET {setting} WHERE name = '{name}'"))
    engine.dispose()
    status = run(["-c", str(config), "--json", "ls"])
    captured = capsys.readouterr()
    assert status == DAMAGE
    assert [version["name"] for version in json.loads(captured.out)] == sorted({"first", "second", "third"} - {*odd})
    assert "has an impossible uid: '../../evil'" in captured.err
    assert captured.err.count("\n") == len(odd)


def test_a_year_after_9999_from_postgresql_is_reported(
    postgresql_server: PostgresqlServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = postgresql_server.new_database()
    config = with_versions(make_repository(tmp_path / "repository", database=url), tmp_path)
    engine = new_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE versions SET expire_at = '12000-01-01' WHERE name = 'first'"))
        connection.execute(text("UPDATE versions SET expire_at = '0044-03-15 BC' WHERE name = 'second'"))
    engine.dispose()
    assert run(["-c", str(config), "-m", "-s", "ls", "-f", "name"]) == DAMAGE
    assert capsys.readouterr().out == "third\n"


def test_the_library_records_what_it_leaves_out(config: Path) -> None:
    change_database(config, "UPDATE versions SET name = x'00' WHERE id = 2")
    database = Database(f"sqlite:///{config.parent / 'backyfs.sqlite'}")
    with database.read() as connection:
        assert [version.name for version in list_versions(connection)] == ["first", "third"]
        list_versions(connection)
    assert len(database.odd_rows.messages) == 1
    database.close()
