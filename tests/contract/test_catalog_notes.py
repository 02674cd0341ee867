"""Notes of what must be written to the catalog: the same on every engine."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, update

from backyfs.metadata.catalog.blobcolumns import load_blob_columns
from backyfs.metadata.catalog.index import IndexState, load_index_state, needs_index, plan_index, save_repository_digest
from backyfs.metadata.catalog.notes import (
    NoteKind,
    catalog_key,
    existing_uids,
    has_notes,
    note_index,
    note_repository,
    page_token,
    page_uids,
    read_notes,
    save_catalog_key,
    settle_notes,
    settle_pages,
    unpublish_everything,
    unpublish_pages_with,
    unpublished_page,
    unpublished_pages,
)
from backyfs.metadata.db.tables import pages
from backyfs.metadata.maps.blockmap import HOLE, commit_page, new_entries, replace_blobs
from backyfs.metadata.records.blobs import find_by_uid, insert_blobs, load_blobs
from backyfs.metadata.records.identity import Identity, add_key_slot, remove_key_slot, replace_key_slot, save_identity
from backyfs.metadata.records.removal import remove_version
from backyfs.metadata.records.versions import (
    add_tags,
    create_version,
    remove_tags,
    set_expiry,
    set_protected,
    set_status,
)
from backyfs.metadata.upkeep.checks import mark_damaged, mark_valid, record_checks
from backyfs.model import BlobId, BlobUid, KeySlot, PageId, PageNumber, SavedBlob, Version, VersionStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.metadata.db.database import Connection

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SLOT = KeySlot(
    label="first", kdf="x", kdf_parameters="", key_check=bytes(8), wrapped_key=bytes(40), created_at=NOW
)


@pytest.fixture
def version(connection: Connection) -> Version:
    """Make a version without a note."""
    version = create_version(connection, name="disk", snapshot_name="", size_bytes=4096 * 1024, created_at=NOW)
    settle(connection, NoteKind.VERSION)
    settle(connection, NoteKind.INDEX)
    return version


@pytest.fixture
def page_id(connection: Connection, version: Version) -> PageId:
    """Make a page of the version with the blobs 1 and 2."""
    first, second = new_blobs(connection, 2)
    page_id = commit_page(connection, version.id, PageNumber(0), new_entries(500, first) + new_entries(524, second))
    assert page_id is not None
    return page_id


def new_blobs(connection: Connection, count: int) -> list[BlobId]:
    uids = [BlobUid(f"{number:032x}") for number in range(count)]
    insert_blobs(
        connection,
        [
            SavedBlob(uid=uid, fingerprint=uid.encode(), size=4096, stored_size=number, encryption_version=2,
                      wrapped_key=bytes((number, 0, 255)) * 10)
            for number, uid in enumerate(uids)
        ],
        NOW,
    )  # fmt: skip
    found = find_by_uid(connection, uids)
    return [found[uid].id for uid in uids]


def settle(connection: Connection, kind: NoteKind) -> None:
    settle_notes(connection, kind, read_notes(connection, kind))


def noted(connection: Connection, kind: NoteKind) -> list[str]:
    return [note.uid for note in read_notes(connection, kind)]


def test_a_new_version_is_noted(connection: Connection) -> None:
    version = create_version(
        connection, name="disk", snapshot_name="", size_bytes=1, created_at=NOW, tag_names=["a"]
    )
    assert noted(connection, NoteKind.VERSION) == [version.uid]
    assert has_notes(connection)


@pytest.mark.parametrize(
    "change",
    [
        lambda connection, version: set_status(connection, version.id, VersionStatus.VALID),
        lambda connection, version: set_expiry(connection, version.id, NOW),
        lambda connection, version: set_protected(connection, version.id, protected=True),
        lambda connection, version: add_tags(connection, version.id, ["a"]),
        lambda connection, version: remove_tags(connection, version.id, ["a"]),
        lambda connection, version: mark_valid(connection, version.id),
        lambda connection, version: remove_version(connection, version.id),
    ],
)
def test_every_change_of_a_version_is_noted(
    connection: Connection, version: Version, change: Callable[[Connection, Version], object]
) -> None:
    assert not has_notes(connection)
    change(connection, version)
    assert noted(connection, NoteKind.VERSION) == [version.uid]


def test_damage_is_noted_for_version_and_pages(connection: Connection, version: Version, page_id: PageId) -> None:
    set_status(connection, version.id, VersionStatus.VALID)
    settle(connection, NoteKind.VERSION)
    [blob] = find_by_uid(connection, [BlobUid("0" * 32)]).values()
    record_checks(connection, (), load_blobs(connection, [blob.id]).values(), NOW)
    mark_damaged(connection, [version.id], NOW)
    assert noted(connection, NoteKind.VERSION) == [version.uid]
    assert noted(connection, NoteKind.BLOB) == [str(blob.id)]
    settle(connection, NoteKind.BLOB)
    record_checks(connection, [blob.id], (), NOW)
    assert noted(connection, NoteKind.BLOB) == [str(blob.id)]


@pytest.mark.parametrize(
    "change",
    [
        note_repository,
        lambda connection: add_key_slot(connection, SLOT),
        lambda connection: replace_key_slot(connection, "first", SLOT),
        lambda connection: remove_key_slot(connection, "first"),
        lambda connection: save_identity(
            connection,
            Identity(
                uid="x", block_size=1, hash_function="blake3", wrapped_fingerprint_key=None, created_at=NOW
            ),
        ),
    ],
)
def test_every_change_of_the_repository_is_noted(
    connection: Connection, change: Callable[[Connection], object]
) -> None:
    change(connection)
    assert noted(connection, NoteKind.REPOSITORY) == [""]
    assert noted(connection, NoteKind.INDEX) == [""]


def test_new_and_removed_versions_are_noted_for_the_index(connection: Connection, version: Version) -> None:
    set_status(connection, version.id, VersionStatus.VALID)
    add_tags(connection, version.id, ["a"])
    assert noted(connection, NoteKind.INDEX) == []
    remove_version(connection, version.id)
    assert noted(connection, NoteKind.INDEX) == [version.uid]
    new = create_version(connection, name="disk", snapshot_name="", size_bytes=1, created_at=NOW)
    assert set(noted(connection, NoteKind.INDEX)) == {version.uid, new.uid}


def test_the_index_lists_only_durable_objects(connection: Connection, version: Version) -> None:
    new = create_version(connection, name="disk", snapshot_name="", size_bytes=1, created_at=NOW)
    changed = create_version(connection, name="disk", snapshot_name="", size_bytes=1, created_at=NOW)
    busy = create_version(connection, name="disk", snapshot_name="", size_bytes=1, created_at=NOW)
    for kind in (NoteKind.VERSION, NoteKind.INDEX):
        settled = [note for note in read_notes(connection, kind) if note.uid in {changed.uid, busy.uid}]
        settle_notes(connection, kind, settled)
    add_tags(connection, changed.id, ["a"])
    note_index(connection, [busy.uid])
    assert not needs_index(connection, {busy.uid})
    remove_version(connection, version.id)
    assert needs_index(connection, {busy.uid})
    plan = plan_index(connection, {busy.uid}, 0)
    assert plan.versions == (changed.uid,)
    assert [note.uid for note in plan.notes] == [version.uid]
    assert {new.uid, busy.uid}.isdisjoint(plan.versions)


def test_the_number_of_an_index_only_increases(connection: Connection) -> None:
    assert load_index_state(connection) is None
    assert [plan_index(connection, (), least).state.number for least in (0, 0, 9, 3)] == [1, 2, 10, 11]
    save_repository_digest(connection, b"d" * 16)
    assert load_index_state(connection) == IndexState(number=11, repository=b"d" * 16)
    assert not has_notes(connection)


def test_a_settled_note_is_removed(connection: Connection, version: Version) -> None:
    set_expiry(connection, version.id, NOW)
    notes = read_notes(connection, NoteKind.VERSION)
    assert settle_notes(connection, NoteKind.VERSION, notes)
    assert noted(connection, NoteKind.VERSION) == []


def test_a_note_of_a_later_change_is_kept(connection: Connection, version: Version) -> None:
    set_expiry(connection, version.id, NOW)
    notes = read_notes(connection, NoteKind.VERSION)
    set_expiry(connection, version.id, None)
    assert not settle_notes(connection, NoteKind.VERSION, notes)
    assert noted(connection, NoteKind.VERSION) == [version.uid]


def test_a_note_settled_by_another_command_is_noted_again(connection: Connection, version: Version) -> None:
    # Nobody knows which of the two objects was stored last.
    set_expiry(connection, version.id, NOW)
    notes = read_notes(connection, NoteKind.VERSION)
    settle(connection, NoteKind.VERSION)
    assert not settle_notes(connection, NoteKind.VERSION, notes)
    assert noted(connection, NoteKind.VERSION) == [version.uid]


def test_notes_can_be_read_in_parts(connection: Connection) -> None:
    for _ in range(5):
        create_version(connection, name="disk", snapshot_name="", size_bytes=1, created_at=NOW)
    uids = noted(connection, NoteKind.VERSION)
    assert uids == sorted(uids)
    first = read_notes(connection, NoteKind.VERSION, limit=2)
    rest = read_notes(connection, NoteKind.VERSION, after=first[-1].uid, limit=10)
    assert [note.uid for note in first + rest] == uids


def test_a_new_page_is_unpublished_until_it_is_settled(connection: Connection, page_id: PageId) -> None:
    [row] = unpublished_pages(connection, PageId(0), 10)
    assert (row.id, row.uid) == (page_id, unpublished_page(connection, page_id))
    assert unpublished_pages(connection, page_id, 10) == []
    assert settle_pages(connection, [page_id], page_token(connection)) == frozenset()
    assert unpublished_pages(connection, PageId(0), 10) == []
    assert unpublished_page(connection, page_id) is None


def test_a_page_that_must_be_written_again_in_the_meantime_remains_unpublished(
    connection: Connection, page_id: PageId
) -> None:
    token = page_token(connection)
    unpublish_everything(connection)
    settle_pages(connection, [page_id], token)
    assert [row.id for row in unpublished_pages(connection, PageId(0), 10)] == [page_id]


def test_pages_that_no_longer_exist_are_reported(connection: Connection, page_id: PageId) -> None:
    gone = PageId(page_id + 1)
    assert settle_pages(connection, [page_id, gone], page_token(connection)) == {gone}


def test_a_removed_page_leaves_a_note_if_the_catalog_has_it(
    connection: Connection, version: Version, page_id: PageId
) -> None:
    uid = unpublished_page(connection, page_id)
    commit_page(connection, version.id, PageNumber(0), new_entries(1024, HOLE))
    assert noted(connection, NoteKind.PAGE) == []
    assert uid is not None
    entries = new_entries(1024, first_blob_id(connection))
    page_id = commit_page(connection, version.id, PageNumber(0), entries) or page_id
    uid = unpublished_page(connection, page_id)
    settle_pages(connection, [page_id], page_token(connection))
    commit_page(connection, version.id, PageNumber(0), new_entries(1024, HOLE))
    assert noted(connection, NoteKind.PAGE) == [uid]


def first_blob_id(connection: Connection) -> int:
    return find_by_uid(connection, [BlobUid("0" * 32)])[BlobUid("0" * 32)].id


def test_replacing_a_page_changes_its_versions(
    connection: Connection, version: Version, page_id: PageId
) -> None:
    first, second = (known.id for known in find_by_uid(
        connection, [BlobUid(f"{number:032x}") for number in range(2)]).values())  # fmt: skip
    assert noted(connection, NoteKind.VERSION) == []
    assert replace_blobs(connection, page_id, {first: second})
    assert noted(connection, NoteKind.VERSION) == [version.uid]


def test_changed_blobs_are_noted_by_their_ids_once(connection: Connection) -> None:
    unpublish_pages_with(connection, [BlobId(5), BlobId(70_000_000_000), BlobId(5)])
    unpublish_pages_with(connection, [BlobId(5)])
    assert sorted(noted(connection, NoteKind.BLOB)) == ["5", "70000000000"]


def test_everything_can_be_marked_to_be_written_again(
    connection: Connection, version: Version, page_id: PageId
) -> None:
    settle_pages(connection, [page_id], page_token(connection))
    settle(connection, NoteKind.VERSION)
    before = page_token(connection)
    unpublish_everything(connection)
    assert page_token(connection) != before
    assert noted(connection, NoteKind.VERSION) == [version.uid]
    assert noted(connection, NoteKind.REPOSITORY) == [""]
    assert [row.id for row in unpublished_pages(connection, PageId(0), 10)] == [page_id]


def test_a_page_without_a_version_is_not_written(connection: Connection, page_id: PageId) -> None:
    connection.execute(update(pages).where(pages.c.id == page_id).values(refs=0))
    assert unpublished_pages(connection, PageId(0), 10) == []
    uid = connection.execute(select(pages.c.uid)).scalar_one()
    assert existing_uids(connection, NoteKind.PAGE, [uid, "gone"]) == {uid}


def test_the_pages_of_a_version_are_listed_by_number(connection: Connection, version: Version) -> None:
    [first, second] = new_blobs(connection, 2)
    commit_page(connection, version.id, PageNumber(7), new_entries(1024, second))
    commit_page(connection, version.id, PageNumber(2), new_entries(1024, first))
    rows = {row.id: row.uid for row in unpublished_pages(connection, PageId(0), 10)}
    assert [number for number, _ in page_uids(connection, version.id)] == [2, 7]
    assert {uid for _, uid in page_uids(connection, version.id)} == set(rows.values())


@pytest.mark.parametrize("wanted", [[0, 1, 2], [0, 2], [0, 199], list(range(200))])
def test_blobs_are_read_as_columns(connection: Connection, wanted: list[int]) -> None:
    ids = new_blobs(connection, 200)
    rows = load_blob_columns(connection, {ids[number] for number in wanted})
    assert rows.ids == tuple(ids[number] for number in wanted)
    assert rows.uids == tuple(f"{number:032x}" for number in wanted)
    assert rows.fingerprints == tuple(f"{number:032x}".encode() for number in wanted)
    assert rows.wrapped_keys == tuple(bytes((number, 0, 255)) * 10 for number in wanted)
    assert rows.stored_sizes == tuple(wanted)
    assert set(rows.sizes) == {4096}
    assert set(rows.encryption_versions) == {2}
    assert all(rows.valid)


def test_blobs_without_rows_are_left_out(connection: Connection) -> None:
    [blob_id] = new_blobs(connection, 1)
    assert load_blob_columns(connection, {blob_id, blob_id + 1}).ids == (blob_id,)
    assert load_blob_columns(connection, {blob_id + 1}).ids == ()
    assert load_blob_columns(connection, set()).ids == ()


def test_the_key_of_the_catalog_is_kept(connection: Connection) -> None:
    assert catalog_key(connection) is None
    for check in ("", "0123456789abcdef", "fedcba9876543210"):
        save_catalog_key(connection, check)
        assert catalog_key(connection) == check
    assert not has_notes(connection)
