"""Removing versions, on every engine: counts remain correct, and shared pages and held versions are kept."""

from __future__ import annotations

import threading
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from backyfs.errors import VersionNotFoundError
from backyfs.metadata.db.database import Database
from backyfs.metadata.db.tables import pages, tags
from backyfs.metadata.maps.blockmap import commit_page, list_pages, new_entries, references_add_up, share_pages
from backyfs.metadata.records.blobs import insert_blobs
from backyfs.metadata.records.identity import Identity, save_identity
from backyfs.metadata.records.jobs import hold_version, list_live_jobs, register_job, remove_job
from backyfs.metadata.records.processes import this_process
from backyfs.metadata.records.removal import remove_version
from backyfs.metadata.records.versions import (
    add_tags,
    create_version,
    find_version,
    list_versions,
    remove_tags,
    set_expiry,
    set_protected,
)
from backyfs.metadata.schema.schema import create_file, create_tables
from backyfs.model import BlobUid, PageNumber, SavedBlob, Version
from tests.support.jobs import spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.metadata.db.database import Connection

NOW = datetime(2026, 1, 1, tzinfo=UTC)
IDENTITY = Identity(
    uid="0f5b2c1e-9a64-4f0b-8a57-6b1de0b5a0f3",
    block_size=4096,
    hash_function="blake3",
    wrapped_fingerprint_key=None,
    created_at=NOW,
)
PATIENCE_S = 60


@pytest.fixture(scope="module")
def database(module_database_url: str) -> Iterator[Database]:
    with closing(Database(module_database_url)) as database:
        create_file(database)
        with database.begin() as connection:
            create_tables(connection)
            save_identity(connection, IDENTITY)  # the row that writers lock
        yield database


def new_version(connection: Connection, tag_names: tuple[str, ...] = ()) -> Version:
    return create_version(
        connection, name="disk", snapshot_name="", size_bytes=4096 * 5000, created_at=NOW, tag_names=tag_names
    )


def new_blob(connection: Connection) -> int:
    uid = BlobUid("1" * 32)
    blob = SavedBlob(
        uid=uid, fingerprint=b"1", size=4096, stored_size=4096, encryption_version=0, wrapped_key=None
    )
    return insert_blobs(connection, [blob], NOW)[uid]


def refs(connection: Connection) -> list[int]:
    return list(connection.execute(select(pages.c.refs).order_by(pages.c.id)).scalars())


def test_a_page_loses_all_references_of_a_removed_version(connection: Connection) -> None:
    blob = new_blob(connection)
    one, other = new_version(connection, ("a",)), new_version(connection, ("a", "b"))
    page_id = commit_page(connection, one.id, PageNumber(0), new_entries(2, blob))
    assert page_id is not None
    share_pages(connection, one.id, [(PageNumber(1), page_id), (PageNumber(2), page_id)])
    share_pages(connection, other.id, [(PageNumber(7), page_id)])
    commit_page(connection, one.id, PageNumber(4), new_entries(3, blob))
    assert refs(connection) == [4, 1]
    remove_version(connection, one.id)
    assert refs(connection) == [1, 0]
    assert references_add_up(connection)
    assert [version.uid for version in list_versions(connection)] == [other.uid]
    assert list_pages(connection, other.id) == [(7, page_id)]
    assert sorted(connection.execute(select(tags.c.name)).scalars()) == ["a", "b"]


def test_a_removed_version_cannot_be_held(connection: Connection) -> None:
    version = new_version(connection)
    job = register_job(connection, this_process(), spec("restore"))
    hold_version(connection, job, version.id)
    assert [held.versions for held in list_live_jobs(connection, this_process())] == [(version.uid,)]
    remove_version(connection, version.id)
    with pytest.raises(VersionNotFoundError):
        hold_version(connection, job, version.id)
    assert [held.versions for held in list_live_jobs(connection, this_process())] == [()]


def test_a_hold_waits_for_a_removal_and_finds_the_version_gone(database: Database) -> None:
    with database.write() as connection:
        version = new_version(connection)
        job = register_job(connection, this_process(), spec("restore"))
    outcome: list[str] = []

    def hold() -> None:
        try:
            with database.write() as connection:
                hold_version(connection, job, version.id)
            outcome.append("held")
        except VersionNotFoundError:
            outcome.append("gone")

    holder = threading.Thread(target=hold)
    with database.write() as connection:
        holder.start()
        holder.join(0.3)
        assert outcome == []
        remove_version(connection, version.id)
    holder.join(PATIENCE_S)
    assert outcome == ["gone"]
    with database.write() as connection:
        remove_job(connection, job)


def test_a_removal_waits_for_a_hold_and_respects_it(database: Database) -> None:
    with database.write() as connection:
        version = new_version(connection)
        job = register_job(connection, this_process(), spec("restore"))
    seen: list[tuple[str, ...]] = []

    def remove() -> None:
        with database.write() as connection:
            seen.extend(held.versions for held in list_live_jobs(connection, this_process()))

    remover = threading.Thread(target=remove)
    with database.write() as connection:
        hold_version(connection, job, version.id)
        remover.start()
        remover.join(0.3)
        assert seen == []
    remover.join(PATIENCE_S)
    assert seen == [(version.uid,)]
    with database.write() as connection:
        remove_job(connection, job)
        remove_version(connection, version.id)


def test_protecting_twice_changes_nothing(connection: Connection) -> None:
    version = new_version(connection)
    assert set_protected(connection, version.id, protected=True)
    assert not set_protected(connection, version.id, protected=True)
    assert find_version(connection, version.uid).protected
    assert set_protected(connection, version.id, protected=False)
    assert not find_version(connection, version.uid).protected


def test_tags_and_expiry_can_be_changed(connection: Connection) -> None:
    version = new_version(connection, ("a", "B"))
    assert add_tags(connection, version.id, ["b", "a", "b "]) == ["b", "b "]
    assert find_version(connection, version.uid).tags == ("B", "a", "b", "b ")
    remove_tags(connection, version.id, ["B", "b", "none"])
    assert find_version(connection, version.uid).tags == ("a",)  # "b " too, which could not be named otherwise
    set_expiry(connection, version.id, NOW)
    assert find_version(connection, version.uid).expire_at == NOW
    set_expiry(connection, version.id, None)
    assert find_version(connection, version.uid).expire_at is None
