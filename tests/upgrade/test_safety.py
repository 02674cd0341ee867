"""What an upgrade must not do: lose a repository, begin with a wrong configuration, change anything unasked."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from backyfs.cli.main import run
from backyfs.engine.secrets.rekey import rekey
from backyfs.engine.setup.initialize import initialize
from backyfs.engine.setup.places import Places
from backyfs.engine.setup.upgrade import needs_upgrade, plan_upgrade, upgrade
from backyfs.engine.transfer.importing import import_versions
from backyfs.errors import DatabaseError, SchemaError
from backyfs.keys.slots import Secret
from backyfs.metadata.db.database import Database
from backyfs.repository import open_repository
from tests.upgrade.reference import check

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.services.database import DatabaseServer
    from tests.upgrade.reference import Reference

def dump(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as connection:
        return list(connection.iterdump())


# A repository of ours is never taken for one of backy2


@pytest.mark.parametrize("revision", ["30349b678801", "29c655b78818", None])
def test_a_repository_that_says_a_revision_of_backy2_is_not_touched(revision: str | None, anywhere: Reference) -> None:
    upgrade(anywhere.config)
    with closing(Database(anywhere.config.database_url)) as database, database.begin() as connection:
        connection.execute(text("DELETE FROM alembic_version"))
        if revision is not None:
            connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": revision})
    assert upgrade(anywhere.config) is not None
    with open_repository(anywhere.config) as repository:
        check(repository, anywhere.expected)


def test_a_repository_with_tables_that_backy2_has_added_is_refused_and_not_touched(anywhere: Reference) -> None:
    # What `backy2 initdb` does to it.
    upgrade(anywhere.config)
    with closing(Database(anywhere.config.database_url)) as database:
        with database.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '30349b678801'"))
            connection.execute(
                text(
                    "CREATE TABLE blocks (uid VARCHAR(32), version_uid VARCHAR(36) NOT NULL, id INTEGER NOT NULL, "
                    "checksum VARCHAR(128), size BIGINT, valid INTEGER, PRIMARY KEY (version_uid, id))"
                )
            )
        with pytest.raises(DatabaseError, match="if no other program has used this database"):
            upgrade(anywhere.config)
        with database.begin() as connection:
            connection.execute(text("DROP TABLE blocks"))
    assert upgrade(anywhere.config) is not None
    with open_repository(anywhere.config) as repository:
        check(repository, anywhere.expected)


# The configuration


BUCKET = """type: backy2.data_backends.s3
endpoint_url: http://127.0.0.1:1
retry_time: 0s
bucket_name: bucket
aws_access_key_id: id
aws_secret_access_key: secret"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("block_size: 65536", "block_size: 32768", "has block_size 32768, but the database has blocks of 65536 bytes"),
        ("block_size: 65536", "block_size: 4194304", "has block_size 4194304, but the database has another number of"),
        ("hash_function: sha512", "hash_function: sha256", "with 256 bits, but the database has checksums of 512 bits"),
        ("hash_function: sha512", "hash_function: blake3", "with 256 bits, but the database has checksums of 512 bits"),
    ],
)
def test_a_configuration_that_contradicts_the_rows_is_refused(
    old: str, new: str, message: str, reference: Reference
) -> None:
    reference.change_config(old, new)
    before = reference.sqlite_file.read_bytes()
    for attempt in (upgrade, plan_upgrade):
        with pytest.raises(SchemaError, match=message):
            attempt(reference.config)
    assert reference.sqlite_file.read_bytes() == before
    assert not list(reference.directory.glob("*before-upgrade*"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("type: backy2.data_backends.file", BUCKET, "storage s3://bucket: does not answer: connection refused"),
        ("path: data", "path: gone", "gone does not exist"),
        ("encryption_version: 1", "encryption_version: 7", "allowed: 0, 1, 2"),
    ],
)
def test_what_cannot_be_opened_afterwards_is_not_upgraded(
    old: str, new: str, message: str, reference: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    reference.change_config(old, new)
    before = reference.sqlite_file.read_bytes()
    assert run(["-c", str(reference.config_file), "ls"]) != 0
    assert message in capsys.readouterr().err
    assert run(["-c", str(reference.config_file), "upgrade"]) != 0
    assert reference.sqlite_file.read_bytes() == before


def test_tables_of_others_in_the_database_do_not_matter(anywhere: Reference) -> None:
    with closing(Database(anywhere.config.database_url)) as database, database.begin() as connection:
        connection.execute(text("CREATE TABLE otherapp (id INTEGER PRIMARY KEY, name VARCHAR(20))"))
        connection.execute(text("INSERT INTO otherapp VALUES (1, 'stays')"))
    upgrade(anywhere.config)
    with open_repository(anywhere.config) as repository:
        check(repository, anywhere.expected)
        with repository.database.read() as connection:
            assert connection.execute(text("SELECT name FROM otherapp")).scalar() == "stays"


def test_the_place_of_the_copy_is_told_in_every_form(
    reference: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["-c", str(reference.config_file), "-m", "ls"]) == 0
    assert f"{reference.sqlite_file}.before-upgrade-" in capsys.readouterr().err


def test_a_wrong_key_is_told_after_the_upgrade(reference: Reference, capsys: pytest.CaptureFixture[str]) -> None:
    reference.change_config("decafbad" * 8, "0badcafe" * 8)
    assert run(["-c", str(reference.config_file), "ls"]) == 3
    assert "does not open the data keys of this repository" in capsys.readouterr().err
    reference.change_config("0badcafe" * 8, "decafbad" * 8)
    with open_repository(reference.config) as repository:
        check(repository, reference.expected)


def test_encrypted_blocks_are_read_where_new_ones_are_plain(reference: Reference) -> None:
    # backy2 ignores the key then.
    reference.change_config("encryption_version: 1", "encryption_version: 0")
    upgrade(reference.config)
    with open_repository(reference.config) as repository:
        check(repository, reference.expected)
        assert repository.blocks.encryption_version == 0


@pytest.mark.parametrize("rekeyed", [False, True])
def test_a_repository_of_backy2_goes_on_with_its_version_where_none_is_configured(
    rekeyed: bool, reference: Reference
) -> None:
    reference.change_config("encryption_version: 1", "")
    upgrade(reference.config)
    if rekeyed:
        with closing(Database(reference.config.database_url)) as database:
            assert rekey(reference.config, database, Secret(key=bytes.fromhex("decafbad" * 8))).rewrapped
    with open_repository(reference.config) as repository:
        assert repository.blocks.encryption_version == 1
    reference.change_config("[DEFAULTS]", "[DEFAULTS]\nencryption_version: 2")
    with open_repository(reference.config) as repository:
        assert repository.blocks.encryption_version == 2
        check(repository, reference.expected)


# The copy


def test_the_copy_is_the_old_database(reference: Reference) -> None:
    before = dump(reference.sqlite_file)
    report = upgrade(reference.config)
    assert report is not None
    assert report.copy is not None
    assert dump(type(reference.sqlite_file)(report.copy)) == before
    assert stat.S_IMODE(os.stat(report.copy).st_mode) == 0o600


def test_the_copy_goes_where_it_is_wanted(reference: Reference, tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    report = upgrade(reference.config, copy_to=str(tmp_path / "copies"))
    assert report is not None
    assert os.listdir(tmp_path / "copies") == [os.path.basename(report.copy or "")]


def test_without_a_copy_nothing_is_changed(anywhere: Reference, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"missing.*(cannot be copied|cannot be written)|cannot be copied to .*missing"):
        upgrade(anywhere.config, copy_to=str(tmp_path / "missing"))
    assert needs_upgrade(anywhere.config)
    assert upgrade(anywhere.config) is not None


@pytest.mark.parametrize("server", ["postgresql_server", "mariadb_server"])
def test_the_copy_of_a_server_can_be_imported(
    server: str, tmp_path: Path, reference: Reference, request: pytest.FixtureRequest
) -> None:
    running: DatabaseServer = request.getfixturevalue(server)
    url = running.new_database()
    reference.move_to(url)
    report = upgrade(reference.config)
    running.drop(url)
    assert report is not None
    # A new repository with the same blocks and the same key, as after the loss of the server.
    new = tmp_path / "new"
    initialize(
        Places(
            config_file=str(new / "backyfs.cfg"),
            key_file=str(new / "unused.key"),
            storage=str(new / "data"),
            database=str(new / "backyfs.sqlite"),
            logfile=str(new / "backyfs.log"),
        ),
        block_size=65536,
        encrypted=False,
    )
    with closing(sqlite3.connect(new / "backyfs.sqlite")) as connection:
        connection.execute("UPDATE repository SET hash_function = 'sha512', storage_marked = NULL, identity_tag = NULL")
        connection.execute("DELETE FROM catalog_notes")
        connection.commit()
    reference.change_config(f"engine: {url}", f"engine: sqlite:///{new}/backyfs.sqlite")
    with open_repository(reference.config) as repository, open(report.copy or "", "rb") as file:
        import_versions(repository, file, configured_key=bytes.fromhex("decafbad" * 8))
    with open_repository(reference.config) as repository:
        check(repository, reference.expected)


# Looking without touching


def test_a_dry_run_changes_nothing(reference: Reference, capsys: pytest.CaptureFixture[str]) -> None:
    before = reference.sqlite_file.read_bytes()
    assert run(["-c", str(reference.config_file), "upgrade", "--dry-run"]) == 0
    assert "3 versions with 116 blocks would be taken over" in capsys.readouterr().out
    assert run(["-c", str(reference.config_file), "upgrade", "--check"]) == 1
    assert "must be upgraded" in capsys.readouterr().out
    assert reference.sqlite_file.read_bytes() == before
    assert sorted(path.name for path in reference.directory.glob("backy.sqlite*")) == ["backy.sqlite"]


def test_a_check_tells_by_its_status(reference: Reference, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["-c", str(reference.config_file), "upgrade", "--check"]
    assert run(command) == 1
    assert run(["-c", str(reference.config_file), "upgrade"]) == 0
    assert run(command) == 0
    assert "up to date" in capsys.readouterr().out


def test_stored_blocks_are_not_touched(reference: Reference) -> None:
    def blobs() -> dict[str, tuple[int, int]]:
        files = [path for path in (reference.directory / "data").rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}

    before = blobs()
    upgrade(reference.config)
    assert blobs() == before
