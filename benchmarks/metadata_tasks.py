"""Work on metadata alone, without any image: run as `python -m benchmarks.metadata_tasks TASK ...`.

A separate program, so that its memory and its imports are not those of the benchmark.
"""

import random
import secrets
import sqlite3
import sys
import time
import uuid
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from blake3 import blake3
from sqlalchemy import delete, insert, select, update

from backyfs import keys
from backyfs.metadata.db.database import Connection, Database
from backyfs.metadata.db.tables import blob_refs, blobs, key_slots, pages, repository, version_pages, versions
from backyfs.metadata.maps.blockmap import commit_page, load_page, new_entries, pack
from backyfs.metadata.records.blobs import find_blobs, insert_blobs
from backyfs.metadata.records.versions import create_version, set_status
from backyfs.model import BlobId, BlobUid, PageNumber, SavedBlob, VersionId, VersionStatus

BLOCK_BYTES = 4 << 20
PAGE = 1024
ROWS_AT_ONCE = 20_000
WRAPPED_KEYS = 1000  # different ones: their values do not matter here
NAME = "disk"
START = datetime(2024, 1, 1, tzinfo=UTC)

# The schema of backy2 2.13.8, without what an upgrade does not read.
BACKY2_SCHEMA = """
CREATE TABLE versions (uid VARCHAR(36) NOT NULL, date DATETIME NOT NULL, expire DATETIME, name VARCHAR(2048) NOT NULL,
    snapshot_name VARCHAR(2048) DEFAULT '' NOT NULL, size BIGINT NOT NULL, size_bytes BIGINT NOT NULL,
    valid INTEGER NOT NULL, protected INTEGER NOT NULL, PRIMARY KEY (uid));
CREATE TABLE blocks (uid VARCHAR(32), version_uid VARCHAR(36) NOT NULL, id INTEGER NOT NULL, date DATETIME NOT NULL,
    checksum VARCHAR(128), size BIGINT, valid INTEGER NOT NULL, enc_version INTEGER NOT NULL, enc_envkey VARCHAR(80),
    enc_nonce VARCHAR(32), PRIMARY KEY (version_uid, id), FOREIGN KEY(version_uid) REFERENCES versions (uid));
CREATE INDEX ix_blocks_uid ON blocks (uid);
CREATE INDEX ix_blocks_checksum ON blocks (checksum);
CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);
INSERT INTO alembic_version VALUES ('30349b678801');
"""


@dataclass(slots=True)
class Change:
    """How an image changes from one day to the next: this number of its blocks, at random positions."""

    blocks: int
    fraction: float
    random: random.Random

    def places(self) -> list[int]:
        """Return the blocks that change."""
        return self.random.sample(range(self.blocks), int(self.blocks * self.fraction))


def make_backy2(path: str, rows: int, versions_count: int, fraction: float) -> None:
    """Make a database of backy2 with `rows` blocks; from version to version, a part of the image changes."""
    change = Change(rows // versions_count, fraction, random.Random(1))
    content = [_backy2_blob() for _ in range(change.blocks)]
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.executescript(BACKY2_SCHEMA)
        database.execute("BEGIN")
        for day in range(versions_count):
            uid = str(uuid.uuid4())
            date = (START + timedelta(days=day)).strftime("%Y-%m-%d %H:%M:%S.%f")
            database.execute(
                "INSERT INTO versions (uid, date, name, size, size_bytes, valid, protected) "
                "VALUES (?, ?, ?, ?, ?, 1, 0)",
                (uid, date, NAME, change.blocks, change.blocks * BLOCK_BYTES),
            )
            database.executemany(
                f"INSERT INTO blocks VALUES (?, '{uid}', ?, '{date}', ?, {BLOCK_BYTES}, 1, 1, ?, ?)",  # noqa: S608
                ((blob[0], number, *blob[1:]) for number, blob in enumerate(content)),
            )
            for place in change.places():
                content[place] = _backy2_blob()
        database.execute("COMMIT")


def _backy2_blob() -> tuple[str, str, str, str]:
    return (secrets.token_hex(16), secrets.token_hex(64), secrets.token_hex(40), secrets.token_hex(16))


def make_days(url: str, blocks: int, days: int, fraction: float) -> None:
    """Fill a new repository with daily versions of one image, as backups would have done it."""
    change = Change(blocks, fraction, random.Random(1))
    entries = [new_entries(PAGE, 0) for _ in range(blocks // PAGE)]
    born = [0] * blocks           # the state of its page that introduced the blob of a block
    states = [0] * len(entries)   # of each page: how many states it has had
    references: list[int] = []    # of each blob, by its number
    page_rows: list[int] = []     # the current row of each page
    with closing(Database(url)) as database, database.write() as connection:
        for day in range(days):
            places = range(blocks) if day == 0 else change.places()
            for page in {place // PAGE for place in places}:
                states[page] += 1
            for place in places:
                old = entries[place // PAGE][place % PAGE]
                if old:
                    references[old - 1] = states[place // PAGE] - 1 - born[place]
                references.append(0)
                entries[place // PAGE][place % PAGE] = len(references)
                born[place] = states[place // PAGE] - 1
            if day == 0:
                page_rows = [0] * len(entries)
            for page in {place // PAGE for place in places}:
                page_rows[page] = _insert_page(connection, entries[page])
            _insert_version(connection, day, blocks, page_rows)
        for place in range(blocks):
            number = entries[place // PAGE][place % PAGE] - 1
            references[number] = states[place // PAGE] - born[place]
        rows = iter(enumerate(references, 1))
        while batch := [row for _, row in zip(range(10_000), rows, strict=False)]:
            connection.execute(insert(blobs), [_blob_row(number) for number, _ in batch])
            connection.execute(insert(blob_refs), [{"blob_id": number, "refs": count} for number, count in batch])


def _insert_page(connection: Connection, entries: object) -> int:
    digest = blake3(entries.tobytes()).digest()  # type: ignore[attr-defined]
    row = {"uid": str(uuid.uuid4()), "digest": digest, "entries": pack(entries), "refs": 0, "published": False}  # type: ignore[arg-type]
    key = connection.execute(insert(pages).values(row)).inserted_primary_key
    assert key is not None
    return int(key[0])


def _insert_version(connection: Connection, day: int, blocks: int, page_rows: list[int]) -> None:
    version = create_version(
        connection,
        name=NAME,
        snapshot_name="",
        size_bytes=blocks * BLOCK_BYTES,
        created_at=START + timedelta(days=day),
    )
    set_status(connection, version.id, VersionStatus.VALID)
    rows = [{"version_id": version.id, "page_no": number, "page_id": row} for number, row in enumerate(page_rows)]
    connection.execute(insert(version_pages), rows)
    connection.execute(pages.update().where(pages.c.id.in_(page_rows)).values(refs=pages.c.refs + 1))


def _blob_row(number: int) -> dict[str, object]:
    return {
        "id": number,
        "uid": secrets.token_hex(16),
        "fingerprint": secrets.token_bytes(32),
        "size": BLOCK_BYTES,
        "stored_size": BLOCK_BYTES // 2,
        "encryption_version": 1,
        "wrapped_key": secrets.token_bytes(40),
        "valid": True,
        "created_at": START,
    }


def add_day(url: str, fraction: float, *, hints: bool) -> float:
    """Add a version like the others; return the seconds that the metadata took.

    New blobs get rows, every page is committed, 16 in a transaction. With hints the blocks that did not change are
    taken from the pages of the version before; without them the fingerprint of every block is looked up.
    """
    with closing(Database(url)) as database:
        base, content = _last_version(database)
        change = Change(len(content), fraction, random.Random(secrets.randbits(32)))
        changed: dict[int, list[int]] = {}
        for place in change.places():
            content[place] = secrets.token_bytes(32)
            changed.setdefault(place // PAGE, []).append(place % PAGE)
        started = time.perf_counter()
        with database.write() as connection:
            size_bytes = len(content) * BLOCK_BYTES
            version = create_version(
                connection, name=NAME, snapshot_name="", size_bytes=size_bytes, created_at=datetime.now(UTC)
            )
        for first in range(0, len(content) // PAGE, 16):
            with database.write() as connection:
                for number in range(first, min(first + 16, len(content) // PAGE)):
                    page = content[number * PAGE : (number + 1) * PAGE]
                    entries = load_page(connection, base, PageNumber(number)) if hints else new_entries(PAGE, 0)
                    assert entries is not None
                    places = changed.get(number, []) if hints else range(PAGE)
                    ids = _ids(connection, [page[place] for place in places])
                    for place in places:
                        entries[place] = ids[page[place]]
                    commit_page(connection, version.id, PageNumber(number), entries)
        with database.write() as connection:
            set_status(connection, version.id, VersionStatus.VALID)
        return time.perf_counter() - started


def _ids(connection: Connection, fingerprints: list[bytes]) -> dict[bytes, BlobId]:
    """Return the blobs with these blocks; new blobs get rows."""
    found = find_blobs(connection, fingerprints)
    new = [
        SavedBlob(
            uid=BlobUid(secrets.token_hex(16)),
            fingerprint=fingerprint,
            size=BLOCK_BYTES,
            stored_size=BLOCK_BYTES // 2,
            encryption_version=1,
            wrapped_key=secrets.token_bytes(40),
        )
        for fingerprint in fingerprints
        if fingerprint not in found
    ]
    ids = insert_blobs(connection, new, datetime.now(UTC))
    return found | {blob.fingerprint: ids[blob.uid] for blob in new}


def _last_version(database: Database) -> tuple[VersionId, list[bytes]]:
    """Return the newest version, and the fingerprints of its blocks in order."""
    with database.read() as connection:
        row = connection.execute(select(versions).order_by(versions.c.id.desc()).limit(1)).one()
        rows = connection.execute(select(blobs.c.id, blobs.c.fingerprint))
        fingerprints = {blob.id: blob.fingerprint for blob in rows}
        content: list[bytes] = []
        for number in range(row.size_bytes // BLOCK_BYTES // PAGE):
            content += [fingerprints[entry] for entry in load_page(connection, row.id, PageNumber(number)) or ()]
        return VersionId(row.id), content


def make_versions(url: str, count: int) -> None:
    """Insert `count` valid versions of 100 names, one every hour. They consist of holes."""
    rows = [
        {"uid": str(uuid.uuid4()), "created_at": START + timedelta(hours=number), "name": f"{NAME}{number % 100:02}",
         "snapshot_name": "", "size_bytes": 1 << 30, "status": "valid", "protected": False}
        for number in range(count)
    ]  # fmt: skip
    database = Database(url)
    with database.write() as connection:
        connection.execute(insert(versions), rows)
    database.close()


def make_wrapped_keys(url: str, count: int, key_file: str) -> None:
    """Insert `count` blobs. With a key file the repository becomes one of backy2: that key itself wraps data keys."""
    adopted_key = Path(key_file).read_text(encoding="ascii") if key_file else ""
    wrapping_key = bytes.fromhex(adopted_key) if adopted_key else keys.new_key()
    wrapped = [keys.wrap_key(wrapping_key, keys.new_key()) for _ in range(WRAPPED_KEYS)]
    database = Database(url)
    with database.write() as connection:
        if adopted_key:
            connection.execute(delete(key_slots))
            connection.execute(update(repository).values(wrapped_fingerprint_key=None))
        for first in range(0, count, ROWS_AT_ONCE):
            new = [
                SavedBlob(
                    uid=BlobUid(f"{number:032x}"),
                    fingerprint=secrets.token_bytes(64),
                    size=BLOCK_BYTES,
                    stored_size=None,
                    encryption_version=1,
                    wrapped_key=wrapped[number % WRAPPED_KEYS],
                )
                for number in range(first, min(first + ROWS_AT_ONCE, count))
            ]
            insert_blobs(connection, new, START)
    database.close()


def check(url: str) -> float:
    """Return the seconds in which a command finds that the schema is up to date, on a new connection."""
    database = Database(url)
    started = time.perf_counter()
    database.check_revision()
    taken_s = time.perf_counter() - started
    database.close()
    return taken_s


def main() -> None:
    task, path, *numbers = sys.argv[1:]
    match task, numbers:
        case "make-backy2", [rows, versions_count, fraction]:
            make_backy2(path, int(rows), int(versions_count), float(fraction))
        case "make-days", [blocks, days, fraction]:
            make_days(f"sqlite:///{path}", int(blocks), int(days), float(fraction))
        case "add-day", [fraction]:
            print(add_day(f"sqlite:///{path}", float(fraction), hints=False))
        case "add-day-with-hints", [fraction]:
            print(add_day(f"sqlite:///{path}", float(fraction), hints=True))
        case "versions", [count]:
            make_versions(f"sqlite:///{path}", int(count))
        case "wrapped-keys", [count, *key_file]:
            make_wrapped_keys(f"sqlite:///{path}", int(count), "".join(key_file))
        case "check", []:
            print(check(f"sqlite:///{path}"))
        case _:
            raise SystemExit(f"no such task: {task} {numbers}")


if __name__ == "__main__":
    main()
