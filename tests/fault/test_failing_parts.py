"""The k-th call to storage, database or source fails, for every k: no valid version is lost."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from backyfs.engine.restore.restore import restore
from backyfs.errors import BackyfsError, DatabaseError, ObjectUnreadableError, StorageError
from backyfs.metadata.db.database import Database
from backyfs.metadata.records.versions import list_versions, set_status
from backyfs.model import VersionStatus
from tests.support.audit import audit
from tests.support.images import random_image
from tests.support.repositories import BLOCK, back_up

_FAULT = "injected fault"
_MOST_CALLS = 60


class FailingStorage:
    """A storage whose k-th call of some methods fails; all others go to the real one."""

    def __init__(self, storage, methods, fail_at, error=StorageError):
        self._storage = storage
        self._error = error
        self._methods = methods
        self._left = fail_at

    def __getattr__(self, name):
        real = getattr(self._storage, name)
        if name not in self._methods:
            return real

        def call(*arguments):
            self._left -= 1
            if self._left == 0:
                raise self._error(_FAULT)
            return real(*arguments)

        return call

    @property
    def has_failed(self):
        return self._left <= 0


def check_recovery(repository, tmp_path, image, first, first_image):
    """After a fault: the earlier version is whole, and the next backup succeeds."""
    audit(repository)
    target = tmp_path / "restored.img"
    assert restore(repository, first, str(target), replace=True).damaged == ()
    assert target.read_bytes() == first_image.read_bytes()
    version = back_up(repository, image).version
    assert restore(repository, version, str(target), replace=True).damaged == ()
    assert target.read_bytes() == image.read_bytes()
    audit(repository)


@pytest.mark.parametrize("methods", [{"put"}, {"flush"}], ids=["put", "flush"])
def test_a_storage_that_fails_once_costs_no_valid_version(repository, tmp_path, methods):
    first_image = random_image(tmp_path / "first", 3 * BLOCK, 1)
    first = back_up(repository, first_image).version
    for fail_at in range(1, _MOST_CALLS):
        image = random_image(tmp_path / "image", 4 * BLOCK + 9, 100 + fail_at)
        storage = FailingStorage(repository.blocks.storage, methods, fail_at)
        failing = replace(repository, blocks=replace(repository.blocks, storage=storage))
        if fail_at <= 1:
            with pytest.raises(StorageError, match=_FAULT):
                back_up(failing, image)
        else:
            with suppress(StorageError):
                back_up(failing, image)
        check_recovery(repository, tmp_path, image, first, first_image)
        if not storage.has_failed:
            return
    pytest.fail("the fault was never beyond the last call")


def test_an_object_that_cannot_be_read_is_damage_of_its_block_alone(repository, tmp_path):
    image = random_image(tmp_path / "image", 5 * BLOCK)
    version = back_up(repository, image).version
    for fail_at in range(1, 6):
        storage = FailingStorage(repository.blocks.storage, {"get"}, fail_at, ObjectUnreadableError)
        failing = replace(repository, blocks=replace(repository.blocks, storage=storage))
        report = restore(failing, version, str(tmp_path / "restored.img"), replace=True)
        assert [damage.reason for damage in report.damaged] == [_FAULT]
        assert report.bytes_written == 4 * BLOCK


def test_a_storage_that_fails_ends_a_restore_and_damages_nothing(repository, tmp_path):
    version = back_up(repository, random_image(tmp_path / "image", 5 * BLOCK)).version
    for fail_at in range(1, 6):
        storage = FailingStorage(repository.blocks.storage, {"get"}, fail_at)
        failing = replace(repository, blocks=replace(repository.blocks, storage=storage))
        with pytest.raises(StorageError, match=rf"^{_FAULT}; the target is incomplete: continue from block \d"):
            restore(failing, version, str(tmp_path / "restored.img"), replace=True)
    audit(repository)


def test_a_database_that_fails_once_costs_no_valid_version(repository, tmp_path, monkeypatch):
    first_image = random_image(tmp_path / "first", 3 * BLOCK, 1)
    first = back_up(repository, first_image).version
    write = Database.write
    left = 0

    @contextmanager
    def failing_write(self):
        nonlocal left
        left -= 1
        if left == 0:
            raise DatabaseError(_FAULT)
        with write(self) as connection:
            yield connection

    for fail_at in range(1, _MOST_CALLS):
        image = random_image(tmp_path / "image", 4 * BLOCK + 9, 200 + fail_at)
        left = fail_at
        with monkeypatch.context() as patch:
            patch.setattr(Database, "write", failing_write)
            with suppress(BackyfsError):
                back_up(repository, image)
        failed = left <= 0
        check_recovery(repository, tmp_path, image, first, first_image)
        if not failed:
            return
    pytest.fail("the fault was never beyond the last call")


def test_a_transaction_that_fails_at_its_end_does_nothing(repository, tmp_path):
    image = random_image(tmp_path / "image", BLOCK)
    version = back_up(repository, image).version

    def change_and_fail():
        with repository.database.write() as connection:
            set_status(connection, version.id, VersionStatus.INVALID)
            raise DatabaseError(_FAULT)

    with pytest.raises(DatabaseError, match=_FAULT):
        change_and_fail()
    with repository.database.read() as connection:
        assert [found.status for found in list_versions(connection)] == [VersionStatus.VALID]
