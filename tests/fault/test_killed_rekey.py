"""A rekey that is killed at any statement, or whose statement fails: the old key opens all, or the new one does."""

from __future__ import annotations

import hashlib
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from backyfs.engine.secrets.rekey import rekey
from backyfs.engine.setup.upgrade import upgrade
from backyfs.errors import DatabaseError, WrongKeyError
from backyfs.keys.slots import Secret
from backyfs.metadata.db.database import Database
from backyfs.metadata.records.blobs import load_blobs
from backyfs.metadata.records.identity import list_key_slots
from backyfs.metadata.records.wrapped_keys import wrapped_keys
from backyfs.model import BlobId, KeySource
from backyfs.repository import open_repository
from tests.support.repositories import make_repository, opened
from tests.support.statements import fail, watched
from tests.support.states import Stored
from tests.upgrade.reference import Reference

if TYPE_CHECKING:
    from pathlib import Path

    from backyfs.config import Config

K1 = bytes.fromhex("decafbad" * 8)
K2 = bytes.fromhex("5e" * 32)


class Subject:
    """A repository that is opened by K1, or by K2 after a rekey; it can be made again and again."""

    def __init__(self, config: Config, directory: Path, *, slots: bool) -> None:
        self.old = replace(config, key=KeySource(hex_digits=K1.hex()))
        self.new = replace(config, key=KeySource(hex_digits=K2.hex()))
        self.slots = slots
        self.stored = Stored(directory)
        self._data_keys = self.data_keys(self.old)

    def rekey(self) -> None:
        """Rekey it."""
        with closing(Database(self.new.database_url)) as database:
            rekey(self.new, database, Secret(key=K1), keys_at_once=4)

    def data_keys(self, config: Config) -> str:
        """Return a digest of all data keys, as a configuration opens them."""
        digest = hashlib.sha256()
        with open_repository(config) as repository, repository.database.read() as connection:
            for batch in wrapped_keys(connection):
                for blob in load_blobs(connection, [BlobId(row.blob_id) for row in batch]).values():
                    digest.update(repository.blocks.keyring.unwrap(blob.wrapped_key))
        return digest.hexdigest()

    def check(self) -> bool:
        """Make sure that all is old or all is new; return whether it is new."""
        try:
            assert self.data_keys(self.new) == self._data_keys
        except WrongKeyError:
            assert self.data_keys(self.old) == self._data_keys
            with closing(Database(self.old.database_url)) as database, database.read() as connection:
                assert bool(list_key_slots(connection)) == self.slots
            return False
        with pytest.raises(WrongKeyError):
            self.data_keys(self.old)
        return True


@pytest.fixture(params=["of backy2", "with a slot"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
    if request.param == "of backy2":
        reference = Reference("mixed-sqlite", tmp_path)
        upgrade(reference.config)
        return Subject(reference.config, reference.directory, slots=False)
    (tmp_path / "repository").mkdir()
    config_file = make_repository(tmp_path / "repository")
    key_file = tmp_path / "repository/backyfs.key"
    with opened(config_file) as repository:
        config = repository.config
    old = bytes.fromhex(key_file.read_text())
    with closing(Database(config.database_url)) as database:
        rekey(replace(config, key=KeySource(hex_digits=K1.hex())), database, Secret(key=old))
    return Subject(config, tmp_path / "repository", slots=True)


def test_a_kill_at_any_statement(subject: Subject) -> None:
    killed = subject.stored.killed(subject.rekey, changes_only=False)
    assert killed.steps >= 5
    assert subject.check()
    for copy in killed.copies.values():
        subject.stored.put(copy)
        assert not subject.check()
        subject.rekey()  # the command, once more
        assert subject.check()


def test_a_statement_that_fails(subject: Subject) -> None:
    number = 0
    while True:
        number += 1
        with watched(fail, number, changes_only=False) as statements, suppress(DatabaseError):
            subject.rekey()
        if statements.count < number:
            break
        assert not subject.check(), f"statement {number}"
    assert number > 5
    assert subject.check()
