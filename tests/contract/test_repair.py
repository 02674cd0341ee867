"""Database queries for repairs: the same on every engine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy import update

from backyfs.metadata.db.tables import blobs, pages
from backyfs.metadata.maps.blockmap import list_pages
from backyfs.metadata.records.blobs import load_blobs
from backyfs.metadata.upkeep.checks import (
    damaged_in_use,
    damaged_with,
    has_damage,
    is_whole,
    mark_damaged,
    replaceable,
    versions_valid_before_damage,
    was_valid,
)
from backyfs.model import BlobUid
from tests.contract.test_checks import BLOCK, NOW, new_blobs, new_version
from tests.support.audit import doom

if TYPE_CHECKING:
    from backyfs.metadata.db.database import Connection


def set_damaged(connection: Connection, *ids: int) -> None:
    connection.execute(update(blobs).where(blobs.c.id.in_(ids)).values(valid=False))


def set_fingerprint(connection: Connection, blob_id: int, fingerprint: bytes) -> None:
    connection.execute(update(blobs).where(blobs.c.id == blob_id).values(fingerprint=fingerprint))


def test_there_is_damage_until_the_last_blob_is_intact_or_doomed(connection: Connection) -> None:
    one, two = new_blobs(connection, 2)
    assert not has_damage(connection)
    set_damaged(connection, one, two)
    doom(connection, one)
    assert has_damage(connection)
    doom(connection, two)
    assert not has_damage(connection)


def test_damaged_blobs_are_found_by_their_bytes_while_versions_use_them(connection: Connection) -> None:
    ids = new_blobs(connection, 1200)
    for blob_id in ids:
        set_fingerprint(connection, blob_id, b"%d" % blob_id)
    whole, unused, doomed, *rest = ids
    new_version(connection, [whole, doomed, *rest[:900]])
    set_damaged(connection, unused, doomed, *rest[::2])
    found = list(damaged_with(connection, [b"%d" % blob_id for blob_id in ids]))
    assert [blob.id for blob in found] == sorted([doomed, *rest[:900:2]])
    assert damaged_in_use(connection) == sorted([doomed, *rest[:900:2]])
    assert list(damaged_with(connection, [b"other"])) == []


def test_all_damaged_blobs_with_the_same_bytes_are_found(connection: Connection) -> None:
    ids = new_blobs(connection, 3)
    new_version(connection, ids)
    set_damaged(connection, *ids[1:])
    assert [blob.id for blob in damaged_with(connection, [b"f"])] == ids[1:]


def test_a_blob_can_be_replaced_only_if_it_has_not_changed(connection: Connection) -> None:
    ids = new_blobs(connection, 3)
    known = list(load_blobs(connection, ids).values())
    doom(connection, ids[0])
    moved = [known[0], known[1], replace(known[2], uid=BlobUid("another"))]
    assert replaceable(connection, moved) == {ids[1]}


def test_a_formerly_valid_version_is_intact_if_nothing_is_marked(connection: Connection) -> None:
    ids = new_blobs(connection, 3)
    version = new_version(connection, ids)
    assert not is_whole(connection, version, BLOCK)  # backy2 may have marked it invalid, so a scrub must check
    assert not was_valid(connection, version.id)
    mark_damaged(connection, [version.id], NOW)
    assert was_valid(connection, version.id)
    assert versions_valid_before_damage(connection) == {version.id}
    assert is_whole(connection, version, BLOCK)
    set_damaged(connection, ids[1])
    assert not is_whole(connection, version, BLOCK)


def test_a_version_with_a_blob_of_another_size_is_not_intact(connection: Connection) -> None:
    ids = new_blobs(connection, 3)
    version = new_version(connection, ids)
    mark_damaged(connection, [version.id], NOW)
    connection.execute(update(blobs).where(blobs.c.id == ids[1]).values(size=BLOCK - 1))
    assert not is_whole(connection, version, BLOCK)


def test_a_version_with_a_damaged_page_or_one_beyond_its_end_is_not_intact(connection: Connection) -> None:
    ids = new_blobs(connection, 2)
    version = new_version(connection, ids, ids[:1])
    mark_damaged(connection, [version.id], NOW)
    assert is_whole(connection, version, BLOCK)
    assert not is_whole(connection, replace(version, size_bytes=version.size_bytes // 2), BLOCK)
    assert not is_whole(connection, replace(version, size_bytes=version.size_bytes - BLOCK), BLOCK)
    (_, page_id), _ = list_pages(connection, version.id)
    connection.execute(update(pages).values(digest=b"other" + b"\0" * 27).where(pages.c.id == page_id))
    assert not is_whole(connection, version, BLOCK)
