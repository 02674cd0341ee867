"""Encryption cannot be switched off by changing the database: every command compares it with the repository key."""

from __future__ import annotations

import hmac
import re
import shutil
import sqlite3
import struct
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from backyfs.cli.main import run
from backyfs.keys.identity import identity_tag
from backyfs.metadata.records.identity import load_identity, load_identity_tag
from tests.support.images import random_bytes, random_image
from tests.support.program import backyfs
from tests.support.repositories import BLOCK, back_up, configure, copy_repository, make_repository, opened
from tests.upgrade.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

COMMANDS = {
    "ls": ["ls"],
    "backup": ["backup", "{directory}/image", "disk"],
    "restore": ["restore", "--verify", "disk@latest", "{directory}/target"],
    "scrub": ["scrub", "--all"],
    "key list": ["key", "print"],
}
KEY_COMMANDS = {
    "check": ["key", "check"],
    "export": ["key", "export", "{directory}/target"],
    "add": ["key", "add", "other", "--key-command", f"echo {'cd' * 32}"],
    "change": ["key", "change", "configuration", "--key-command", f"echo {'cd' * 32}"],
    "remove": ["key", "remove", "configuration"],
    "rekey": ["rekey", "--old-key-file", "{directory}/repository/backyfs.key"],
    "reseal": ["migrate-encryption", "--all", "--reseal"],
}
every_command = pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
NO_SLOTS = "DELETE FROM key_slots"
NO_TAG = "UPDATE repository SET identity_tag = NULL"
NO_FINGERPRINT_KEY = "UPDATE repository SET wrapped_fingerprint_key = NULL"
A_DATE = "UPDATE repository SET key_made_at = '2024-01-01 00:00:00.000000'"  # as after a rotation
# The configured key opens the wrapped key of its slot. The newest blob has that key too, so it looks like backy2's.
SLOT_AS_BLOB = (
    "INSERT INTO blobs (uid, size, stored_size, encryption_version, wrapped_key, valid, created_at) SELECT "
    f"'{'ab' * 16}', {BLOCK}, 100, 2, wrapped_key, 1, '2040-01-01 00:00:00.000000' FROM key_slots"
)
NOTHING_WRAPPED = "UPDATE blobs SET encryption_version = 0, wrapped_key = NULL, fingerprint = NULL"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an encrypted repository with a backup, also in the catalog, and its image; return where they are."""
    directory = tmp_path_factory.mktemp("made")
    config = make_repository(directory / "repository")
    random_image(directory / "image", 2 * BLOCK)
    assert backyfs("-c", config, "backup", directory / "image", "disk").returncode == 0
    return directory


@pytest.fixture
def directory(made: Path, tmp_path: Path) -> Path:
    """Copy them; return the directory of the repository."""
    shutil.copy(made / "image", tmp_path)
    return copy_repository(made / "repository", tmp_path / "repository").parent


def change(directory: Path, *statements: str) -> None:
    with closing(sqlite3.connect(directory / "backyfs.sqlite", isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def rows(directory: Path, *tables: str) -> list[Any]:
    with closing(sqlite3.connect(directory / "backyfs.sqlite")) as connection:
        return [connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables]


def call(directory: Path, *words: str) -> int:
    arguments = [word.format(directory=directory.parent) for word in words]
    return run(["-c", str(directory / "backyfs.cfg"), *arguments])


def refused(directory: Path, capsys: pytest.CaptureFixture[str], *words: str, status: int = 20) -> str:
    """Fail unless a command is refused and writes nothing; return its message."""
    capsys.readouterr()
    before = rows(directory, "repository", "key_slots", "versions", "blobs")
    assert call(directory, *words) == status
    assert rows(directory, "repository", "key_slots", "versions", "blobs") == before
    assert not (directory.parent / "target").exists()
    return capsys.readouterr().err


# Changed databases


@every_command
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE repository SET wrapped_fingerprint_key = NULL",
        "UPDATE repository SET wrapped_fingerprint_key = zeroblob(40)",
        "UPDATE repository SET block_size = 8192",
        "UPDATE repository SET hash_function = 'sha512'",
        "UPDATE repository SET uid = '0f5b2c1e-9a64-4f0b-8a57-6b1de0b5a0f3'",
        "UPDATE repository SET identity_tag = zeroblob(32)",
    ],
)
def test_a_changed_identity_is_refused(
    directory: Path, capsys: pytest.CaptureFixture[str], words: list[str], statement: str
) -> None:
    change(directory, statement)
    said = refused(directory, capsys, *words)
    assert "of the repository than the ones written with its key: it was changed or damaged; restore the" in said
    assert "`backyfs recover`" in said


@pytest.mark.parametrize("words", KEY_COMMANDS.values(), ids=KEY_COMMANDS)
def test_no_key_command_writes_a_matching_tag_for_a_changed_identity(
    directory: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    change(directory, "UPDATE repository SET wrapped_fingerprint_key = NULL")
    assert "than the ones written with its key" in refused(directory, capsys, *words)


def test_a_rekey_compares_the_identity_before_it_rewrites_a_slot(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(directory, "UPDATE repository SET wrapped_fingerprint_key = NULL")
    (directory / "backyfs.key").rename(directory / "old.key")
    (directory / "backyfs.key").write_text("ab" * 32)
    (directory / "backyfs.key").chmod(0o600)
    words = ("rekey", "--old-key-file", "{directory}/repository/old.key")
    assert "than the ones written with its key" in refused(directory, capsys, *words)


@pytest.mark.parametrize(
    "words",
    [
        ["restore", "--verify", "disk@latest", "{directory}/target"],
        ["scrub", "--all"],
        ["export", "--format", "backy2", "disk@latest", "{directory}/export"],
        ["migrate-encryption", "--all"],
    ],
    ids=" ".join,
)
def test_an_encrypted_block_turned_into_a_plain_one_is_damaged_for_every_reader(
    directory: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    for file in (directory / "data").glob("*/*/*.blob"):
        file.write_bytes(b"E" * BLOCK)
    change(directory, NOTHING_WRAPPED)
    assert call(directory, *words) == 20
    assert "is stored plain and has no fingerprint to check it by" in capsys.readouterr().err
    assert not (directory.parent / "export").exists()


@every_command
@pytest.mark.parametrize(
    "statements",
    [
        (NO_SLOTS,),
        (NO_SLOTS, NO_TAG),
        (NO_SLOTS, NO_TAG, NOTHING_WRAPPED),
        (NO_SLOTS, NO_TAG, NOTHING_WRAPPED, "UPDATE repository SET wrapped_fingerprint_key = NULL"),
    ],
    ids=["no slots", "no slots, no tag", "nothing encrypted", "no fingerprint key either"],
)
def test_a_database_that_claims_not_to_be_encrypted_gets_no_new_key(
    directory: Path, capsys: pytest.CaptureFixture[str], words: list[str], statements: tuple[str, ...]
) -> None:
    change(directory, *statements)
    is_key_command = words[0] == "key"
    said = refused(directory, capsys, *words, status=3 if is_key_command else 20)
    if not is_key_command:
        assert "the database has no key slot, but the repository is encrypted: the slots were lost or removed" in said


def test_a_repository_opened_with_a_typed_passphrase_is_not_taken_for_a_plain_one(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = directory / "backyfs.cfg"
    config.write_text(re.sub(r"(?m)^encryption_\w+:.*\n", "", config.read_text()))
    change(directory, NO_SLOTS, NOTHING_WRAPPED)
    (directory / "data" / "catalog" / "repository").unlink()
    assert "the database has no key slot" in refused(directory, capsys, "ls")


@pytest.mark.parametrize("encryption_version", [0, 2])
@pytest.mark.parametrize(
    ("statements", "status", "words"),
    [
        ((NO_SLOTS,), 20, "the database has no key slot, but the repository is encrypted"),
        ((NO_SLOTS, NO_FINGERPRINT_KEY), 3, "does not open the data keys of this repository"),
        ((NO_SLOTS, NO_FINGERPRINT_KEY, SLOT_AS_BLOB), 20, "than the ones written with its key"),
        ((NO_SLOTS, NO_TAG), 20, "the database has no key slot, but the repository is encrypted"),
        ((NO_SLOTS, NO_TAG, NOTHING_WRAPPED), 20, "the database has no key slot, but the repository is encrypted"),
        ((NO_SLOTS, NO_TAG, NO_FINGERPRINT_KEY, NOTHING_WRAPPED, A_DATE), 20, "the database has no key slot, but the"),
    ],
    ids=[
        "tag and fingerprint key", "tag", "tag, and a data key that the configured key opens", "fingerprint key",
        "fingerprint key, nothing encrypted", "date of the key, nothing encrypted",
    ],
)
def test_without_a_catalog_the_rest_of_the_database_shows_that_its_slots_are_lost(
    directory: Path, capsys: pytest.CaptureFixture[str], statements: tuple[str, ...], status: int, words: str,
    encryption_version: int,
) -> None:  # fmt: skip
    """With `encryption_version: 0`, it would be read without a key, and its fingerprints would not be keyed."""
    config = directory / "backyfs.cfg"
    configure(config, encryption_version=encryption_version)
    change(directory, *reversed(statements))
    (directory / "data" / "catalog" / "repository").unlink()
    for command in (["ls"], ["restore", "disk@latest", "{directory}/target"]):
        assert words in refused(directory, capsys, *command, status=status)


def test_without_a_tag_the_catalog_is_compared(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(directory, NO_TAG, "UPDATE repository SET wrapped_fingerprint_key = NULL")
    assert "than the catalog in the storage: it was changed" in refused(directory, capsys, "ls")


def test_check_config_also_detects_it(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(directory, NO_SLOTS, NO_TAG, NOTHING_WRAPPED)
    assert call(directory, "check-config") != 0
    assert "the database has no key slot, but the repository is encrypted" in "".join(capsys.readouterr())


def test_recover_repairs_it(directory: Path, tmp_path: Path) -> None:
    change(directory, "UPDATE repository SET wrapped_fingerprint_key = NULL")
    (directory / "backyfs.sqlite").rename(tmp_path / "changed.sqlite")
    assert call(directory, "recover") == 0
    assert call(directory, "restore", "--verify", "disk@latest", str(tmp_path / "target")) == 0
    assert (tmp_path / "target").read_bytes() == random_bytes(2 * BLOCK)


def test_a_recovery_page_restores_removed_slots(directory: Path, tmp_path: Path) -> None:
    assert call(directory, "key", "export", str(tmp_path / "page")) == 0
    change(directory, NO_SLOTS)
    key = directory / "backyfs.key"
    add = ("key", "add", "again", "--key-file", str(key), "--from-recovery")
    other = make_repository(tmp_path / "other")
    assert run(["-c", str(other), "key", "export", str(tmp_path / "wrong")]) == 0
    assert call(directory, *add, str(tmp_path / "wrong")) == 3
    assert call(directory, *add, str(tmp_path / "page")) == 0
    assert call(directory, "restore", "--verify", "disk@latest", str(tmp_path / "target")) == 0


@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("uid", "''"),
        ("uid", "'../../evil'"),
        ("uid", "x'ff'"),
        ("block_size", "0"),
        ("block_size", "-4096"),
        ("block_size", "1 << 40"),
        ("block_size", "'many'"),
        ("block_size", "1.5"),
        ("hash_function", "'md17'"),
        ("hash_function", "'shake_128'"),
        ("hash_function", "x'00'"),
        ("wrapped_fingerprint_key", "'text'"),
        ("wrapped_fingerprint_key", "4711"),
        ("wrapped_fingerprint_key", "zeroblob(1000)"),
        ("created_at", "'yesterday'"),
        ("created_at", "5"),
        ("key_made_at", "'yesterday'"),
        ("identity_tag", "'text'"),
        ("identity_tag", "zeroblob(31)"),
        ("identity_tag", "-1"),
    ],
)
def test_an_impossible_value_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str, value: str, encrypted: bool
) -> None:
    config = make_repository(tmp_path / "repository", encrypted=encrypted)
    change(config.parent, f"UPDATE repository SET {column} = {value}")
    said = refused(config.parent, capsys, "ls")
    assert re.search(rf"an impossible {column}|{column.replace('_', ' ')} 'sha|has the unknown hash function", said)
    assert "`backyfs recover`" in said


def test_an_impossible_release_costs_the_catalog_but_not_the_backup(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(directory, "UPDATE repository SET needs_release = x'00'")
    assert call(directory, "key", "add", "other", "--key-command", f"echo {'cd' * 32}") == 0
    assert call(directory, "backup", "{directory}/image", "disk") == 0
    said = capsys.readouterr().err
    assert "the copy of the metadata in the storage is out of date: " in said
    assert "an impossible needs_release" in said


@pytest.mark.parametrize(
    "value",
    ["label = x'ff'", "kdf = 5", "kdf = x'00'", "kdf_parameters = x'00'", "key_check = 'text'", "key_check = 7",
     "wrapped_key = zeroblob(1000)", "wrapped_key = 'text'", "created_at = 'yesterday'", "created_at = 5"],
)  # fmt: skip
def test_an_impossible_value_in_a_key_slot_is_reported(
    directory: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    change(directory, f"UPDATE key_slots SET {value}")
    assert call(directory, "ls") in {3, 20}
    assert "unexpected" not in capsys.readouterr().err


# Matching tags


def test_the_tag_is_as_documented(directory: Path) -> None:
    with opened(directory / "backyfs.cfg") as repository:
        key = repository.blocks.keyring.repository_key
        with repository.database.read() as connection:
            identity, tag = load_identity(connection), load_identity_tag(connection)
    assert key is not None
    assert identity.wrapped_fingerprint_key is not None
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"backyfs identity 1").derive(key)
    fields = (identity.uid.encode(), struct.pack("<Q", BLOCK), b"blake3", b"\1" + identity.wrapped_fingerprint_key)
    message = b"".join(struct.pack("<I", len(field)) + field for field in fields)
    assert tag == hmac.new(derived, message, "sha256").digest()


def test_no_two_identities_have_the_same_tag() -> None:
    same: dict[str, Any] = {"uid": "ab", "block_size": 1, "hash_function": "cd", "wrapped_fingerprint_key": None}
    changes: list[dict[str, Any]] = [
        {}, {"uid": "abc", "hash_function": "d"}, {"block_size": 256}, {"hash_function": "cde"},
        {"wrapped_fingerprint_key": b""}, {"wrapped_fingerprint_key": b"\1"},
    ]  # fmt: skip
    tags = {identity_tag(bytes(32), **{**same, **one}) for one in changes}
    tags.add(identity_tag(b"\1" * 32, **same))
    assert len(tags) == len(changes) + 1


def has_matching_tag(config: Path) -> bool:
    """Open a repository; return whether its database has a tag. One that does not match is an error."""
    with closing(sqlite3.connect(next(config.parent.glob("*.sqlite")))) as connection:
        tag = connection.execute("SELECT identity_tag FROM repository").fetchone()[0]
    with opened(config):
        pass
    return tag is not None


def add_a_slot(directory: Path) -> None:
    (directory / "other").write_text("second passphrase\n")
    (directory / "other").chmod(0o600)
    assert call(directory, "key", "add", "other", "--passphrase-file", str(directory / "other")) == 0


def rekey(directory: Path) -> None:
    key = directory / "backyfs.key"
    old = key.rename(directory / "old.key")
    key.write_text("ab" * 32)
    key.chmod(0o600)
    assert call(directory, "rekey", "--old-key-file", str(old)) == 0


def rotate(directory: Path) -> None:
    assert call(directory, "migrate-encryption", "--all", "--reseal") == 0


def recover(directory: Path) -> None:
    (directory / "backyfs.sqlite").rename(directory / "backyfs.old")
    assert call(directory, "recover") == 0


def nothing(_directory: Path) -> None:
    """Leave the repository as `init` made it."""


@pytest.mark.parametrize("act", [nothing, add_a_slot, rekey, rotate, recover])
def test_every_change_of_a_key_writes_a_matching_tag(directory: Path, act: Callable[[Path], None]) -> None:
    act(directory)
    assert has_matching_tag(directory / "backyfs.cfg")
    change(directory, "UPDATE repository SET block_size = 8192")
    assert call(directory, "ls") == 20


def test_a_database_without_a_tag_gets_it_from_the_next_command(directory: Path) -> None:
    [[before]] = rows(directory, "repository")
    change(directory, NO_TAG)
    assert call(directory, "ls") == 0
    assert rows(directory, "repository") == [[before]]


def test_a_catalog_of_another_key_is_not_compared(directory: Path) -> None:
    """A rotation that is killed before it writes the catalog leaves such a one; the next command writes it."""
    stored = (directory / "data" / "catalog" / "repository").read_bytes()
    rotate(directory)
    (directory / "data" / "catalog" / "repository").write_bytes(stored)
    change(directory, NO_TAG)
    assert call(directory, "ls") == 0
    assert has_matching_tag(directory / "backyfs.cfg")


def test_a_plain_repository_that_gets_a_key_says_so_and_gets_a_tag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_repository(tmp_path / "repository", encrypted=False)
    with opened(config) as repository:
        back_up(repository, random_image(tmp_path / "image", BLOCK))
    (tmp_path / "key").write_text("ab" * 32)
    (tmp_path / "key").chmod(0o600)
    text = re.sub(r"(?m)^encryption_version:.*$", f"encryption_key_file: {tmp_path}/key", config.read_text())
    config.write_text(text)
    assert call(config.parent, "ls") == 0
    assert "this repository was not encrypted until now. New blocks will be" in capsys.readouterr().err
    assert has_matching_tag(config)
    change(config.parent, NO_SLOTS)
    assert "the database has no key slot" in refused(config.parent, capsys, "ls")


def test_an_adopted_repository_gets_a_tag_by_the_key_of_backy2(tmp_path: Path) -> None:
    reference = Reference("v1-sqlite", tmp_path)
    for has_tag in (False, True):
        assert run(["-c", str(reference.config_file), "ls"]) == 0
        with closing(sqlite3.connect(reference.sqlite_file)) as connection:
            [(tag,)] = connection.execute("SELECT identity_tag FROM repository").fetchall()
        assert (tag is not None) or not has_tag
    with closing(sqlite3.connect(reference.sqlite_file, isolation_level=None)) as connection:
        connection.execute("UPDATE repository SET hash_function = 'sha256'")
    assert run(["-c", str(reference.config_file), "ls"]) == 20
