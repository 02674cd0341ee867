"""Save and load one block: where storage, sealing, keys and fingerprint meet.

A block that is loaded matches its fingerprint, or loading raises. Any thread may call any function.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from blake3 import blake3

from backyfs.errors import DAMAGE, IntegrityError
from backyfs.model import BlobUid, SavedBlob
from backyfs.sealing import DATA_KEY_BYTES, encryption_version
from backyfs.storage.rereading import read_twice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from backyfs.keys import Keyring
    from backyfs.model import Blob, Buffer
    from backyfs.sealing import EncryptionVersion, Seekable
    from backyfs.storage.protocol import Storage

BLAKE3 = "blake3"
_BLAKE3_BYTES = 32
_UID_DIGITS = 32  # as wide as the uids of backy2, so that its tools and paths fit
_SHELF_DIGITS = 4
_TABLES = 4096  # of 80 bytes for a block of 4 MiB
_RANDOM_DIGITS = _UID_DIGITS - _SHELF_DIGITS
# What backy2 could be configured with, and ours.
_HASHES = (
    BLAKE3, "sha512", "sha256", "sha1", "md5", "sha384", "sha224",
    "blake2b", "blake2s", "sha3_512", "sha3_384", "sha3_256", "sha3_224",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockStore:
    """Everything needed to save and load the blocks of one repository."""

    storage: Storage
    keyring: Keyring
    fingerprint: Callable[[Buffer], bytes]
    encryption_version: int  # of new blobs
    compression_level: int   # of new blobs
    find_moved: Callable[[Blob], Blob | None]  # the blob with its bytes if it was replaced; see `load_block`
    # Held while a whole block is sealed or opened. Threads that wait for a network are many more than processors, and
    # their results would fill the memory.
    computing: AbstractContextManager[object] = field(default_factory=nullcontext)
    # Set if fingerprints have no key: adopted or imported rows may have those of another hash function.
    knows_other_hashes: bool = False

    def matches(self, block: Buffer, fingerprint: bytes) -> bool:
        """Return whether a fingerprint is that of these plain bytes."""
        if self.fingerprint(block) == fingerprint:
            return True
        return self.knows_other_hashes and hash_of(block, fingerprint) is not None


def fingerprint_function(hash_function: str, fingerprint_key: bytes | None) -> Callable[[Buffer], bytes]:
    """Return the function from plain bytes to fingerprint that a repository uses.

    Keyed BLAKE3 if the repository is encrypted, plain BLAKE3 if it is not. Repositories adopted from backy2 keep
    their hash function, a name in hashlib.
    """
    if hash_function == BLAKE3:
        if fingerprint_key is not None:
            return lambda block: blake3(block, key=fingerprint_key).digest()
        return lambda block: blake3(block).digest()
    return lambda block: hashlib.new(hash_function, block, usedforsecurity=False).digest()


def digest_bytes(hash_function: str) -> int:
    """Return the length of a hash function's fingerprints in bytes."""
    return _BLAKE3_BYTES if hash_function == BLAKE3 else hashlib.new(hash_function, usedforsecurity=False).digest_size


OTHER_DIGEST_BYTES = frozenset(map(digest_bytes, _HASHES))


def hash_of(block: Buffer, digest: bytes) -> str | None:
    """Return the hash function, without a key, that yields this digest for these bytes; None: no known one does."""
    return next(
        (
            name
            for name in _HASHES
            if digest_bytes(name) == len(digest) and fingerprint_function(name, None)(block) == digest
        ),
        None,
    )


def new_shelf() -> str:
    """Return the first digits of uids that share a directory of the storage.

    Blobs that are saved together share a shelf, because creating and syncing a directory costs more than a small
    blob. Shelves spread as evenly as single uids would.
    """
    return secrets.token_hex(_SHELF_DIGITS // 2)


def new_blob_uids(shelf: str, count: int) -> list[BlobUid]:
    """Return `count` new random uids on a shelf."""
    digits = secrets.token_hex(count * _RANDOM_DIGITS // 2)
    return [
        BlobUid(shelf + digits[start : start + _RANDOM_DIGITS])
        for start in range(0, len(digits), _RANDOM_DIGITS)
    ]


@dataclass(frozen=True, slots=True)
class SealedBlock:
    """A block that was sealed, but not put into the storage."""

    saved: SavedBlob         # as it will be; `stored_size` is known
    parts: Sequence[Buffer]  # of its object; they may be views of the block

    def apart(self) -> SealedBlock:
        """Return the same without views of the block, so that its buffer can be used again."""
        if self.saved.wrapped_key is not None:  # encrypted: the parts are new
            return self
        return SealedBlock(self.saved, [bytes(part) for part in self.parts])


def seal_blocks(store: BlockStore, new: Iterable[tuple[BlobUid, bytes, Buffer]]) -> Iterator[SealedBlock]:
    """Seal blocks, given as uid, fingerprint and plain bytes, one after the other."""
    scheme = encryption_version(store.encryption_version)
    seal = scheme.sealer(store.compression_level)
    for uid, fingerprint, block in new:
        data_key = secrets.token_bytes(DATA_KEY_BYTES) if scheme.uses_data_key else b""
        with store.computing:
            parts = seal(block, data_key)
        saved = SavedBlob(
            uid=uid,
            fingerprint=fingerprint,
            size=memoryview(block).nbytes,
            stored_size=sum(memoryview(part).nbytes for part in parts),
            encryption_version=store.encryption_version,
            wrapped_key=store.keyring.wrap(data_key) if scheme.uses_data_key else None,
        )
        yield SealedBlock(saved, parts)


def put_blocks(store: BlockStore, sealed: Iterable[SealedBlock]) -> list[SavedBlob]:
    """Put sealed blocks into the storage. They are durable after the next flush of the storage.

    Raises:
        StorageError: the storage fails.
    """
    saved = []
    for block in sealed:
        store.storage.put(block.saved.uid, block.parts)
        saved.append(block.saved)
    return saved


def save_blocks(store: BlockStore, new: Iterable[tuple[BlobUid, bytes, Buffer]]) -> list[SavedBlob]:
    """Seal blocks, given as uid, fingerprint and plain bytes, and put them into the storage.

    They are durable after the next flush of the storage.

    Raises:
        StorageError: the storage fails.
    """
    return put_blocks(store, seal_blocks(store, new))


def load_block(store: BlockStore, blob: Blob) -> bytes:
    """Return the plain bytes of a block, checked: `blob.size` of them, matching its fingerprint.

    If the blob was replaced after its row was read, as by re-sealing, its replacement is loaded.

    Raises:
        ObjectMissingError: its object does not exist.
        ObjectUnreadableError: its object cannot be read.
        IntegrityError: its object does not contain this block; the message names the blob.
        MissingKeyError: it is encrypted, and no key is configured.
    """
    return _load(store, blob, trusts_tag=False)


def _load(store: BlockStore, blob: Blob, *, trusts_tag: bool) -> bytes:
    try:
        return read_twice(store.storage, blob.uid, partial(_load_object, store, blob, trusts_tag=trusts_tag))
    except DAMAGE:
        moved = store.find_moved(blob)
        if moved is None:
            raise
    return _load(store, moved, trusts_tag=trusts_tag)


def _load_object(store: BlockStore, blob: Blob, *, trusts_tag: bool) -> bytes:
    try:
        scheme = _version_of(blob)
        if not scheme.uses_data_key:
            _require_fingerprint(blob)
        stored = store.storage.get(blob.uid)
        with store.computing:
            data_key = store.keyring.unwrap(blob.wrapped_key) if scheme.uses_data_key else b""
            block = scheme.open(stored, data_key, blob.size)
            if not (trusts_tag and scheme.uses_data_key):
                _check_fingerprint(store, blob, block)
    except IntegrityError as error:
        error.subject = f"blob {blob.uid}"
        raise
    return block


def _version_of(blob: Blob) -> EncryptionVersion:
    try:
        return encryption_version(blob.encryption_version)
    except IntegrityError as error:
        error.subject = f"blob {blob.uid}"
        raise


def piece_bytes(blob: Blob) -> int:
    """Return how many plain bytes of a blob are opened at once: all of them, if its version has no segments.

    Raises:
        IntegrityError: this program does not know its encryption version.
    """
    seekable = _version_of(blob).seekable
    return blob.size if seekable is None else min(seekable.segment_bytes, blob.size)


class PieceLoader:
    """Loads parts of blocks, and caches the tables of recent blobs. Any thread may use it."""

    def __init__(self, store: BlockStore) -> None:
        """Load from a store."""
        self._store = store
        self._lock = threading.Lock()  # guards the tables
        self._tables: OrderedDict[BlobUid, Buffer] = OrderedDict()  # as stored; the most recent ones last

    def load(self, blob: Blob, pieces: range) -> list[bytes]:
        """Return some pieces of a block, checked. Piece n is bytes [n, n + 1) times `piece_bytes`.

        Pieces with a tag of authenticated encryption are checked by the tag alone. That saves a tenth of the time, and
        a part of a block has no fingerprint. It takes one request to the storage, and one more if the table of the
        blob is not cached.

        Raises:
            What `load_block` raises.
        """
        seekable = _version_of(blob).seekable
        if seekable is None:
            return [_load(self._store, blob, trusts_tag=True)]
        try:
            return read_twice(self._store.storage, blob.uid, partial(self._load_segments, blob, seekable, pieces))
        except DAMAGE:
            moved = self._store.find_moved(blob)
            if moved is None:
                raise
        # The replacement may have pieces of another size, but the caller expects those of the original.
        block = _load(self._store, moved, trusts_tag=True)
        size = seekable.segment_bytes
        return [block[number * size : (number + 1) * size] for number in pieces]

    def _load_segments(self, blob: Blob, seekable: Seekable, pieces: range) -> list[bytes]:
        try:
            data_key = self._store.keyring.unwrap(blob.wrapped_key)
            return seekable.open_range(self._reader(blob, seekable, pieces), data_key, blob.size, pieces)
        except IntegrityError as error:
            with self._lock:
                self._tables.pop(blob.uid, None)
            error.subject = f"blob {blob.uid}"
            raise

    def _reader(self, blob: Blob, seekable: Seekable, pieces: range) -> Callable[[int, int], Buffer]:
        """Return a function that reads bytes of the object, having read what the pieces probably need."""
        storage = self._store.storage
        if len(pieces) * seekable.segment_bytes >= blob.size:
            return _Bytes({0: storage.get(blob.uid)}, storage, blob.uid).read_at
        table_bytes = seekable.table_bytes(blob.size)
        table = self._table(blob)
        if table is None and storage.traits.requests is not None and blob.stored_size is not None:
            return self._guess(blob, blob.stored_size, seekable, pieces)
        if table is None:
            table = storage.get_range(blob.uid, 0, table_bytes)
            self._keep_table(blob, table)
        return _Bytes({0: table}, storage, blob.uid).read_at

    def _guess(
        self, blob: Blob, stored_size: int, seekable: Seekable, pieces: range
    ) -> Callable[[int, int], Buffer]:
        """Read the table and, in the same round trip, the bytes where the pieces probably are."""
        storage = self._store.storage
        table_bytes = seekable.table_bytes(blob.size)
        likely = seekable.likely_bytes(blob.size, stored_size, pieces)
        if likely.start == table_bytes:
            found = {0: storage.get_range(blob.uid, 0, likely.stop)}
        else:
            table, segments = storage.get_ranges(blob.uid, [range(table_bytes), likely])
            found = {0: table, likely.start: segments}
        self._keep_table(blob, found[0][:table_bytes])
        return _Bytes(found, storage, blob.uid).read_at

    def _table(self, blob: Blob) -> Buffer | None:
        with self._lock:
            table = self._tables.get(blob.uid)
            if table is not None:
                self._tables.move_to_end(blob.uid)
            return table

    def _keep_table(self, blob: Blob, table: Buffer) -> None:
        with self._lock:
            self._tables[blob.uid] = table
            if len(self._tables) > _TABLES:
                self._tables.popitem(last=False)


class _Bytes:
    """Some bytes of an object by their offsets; others are read when they are needed."""

    def __init__(self, known: Mapping[int, Buffer], storage: Storage, uid: BlobUid) -> None:
        self._known = known
        self._storage = storage
        self._uid = uid

    def read_at(self, offset: int, length: int) -> Buffer:
        for start, content in self._known.items():
            if start <= offset and offset + length <= start + len(content):
                return memoryview(content)[offset - start : offset - start + length]
        return self._storage.get_range(self._uid, offset, length)


def _require_fingerprint(blob: Blob) -> None:
    # Otherwise anyone who can write to the database could replace any encrypted block by plain bytes.
    if blob.fingerprint is None:
        raise IntegrityError("is stored plain and has no fingerprint to check it by")


def _check_fingerprint(store: BlockStore, blob: Blob, block: bytes) -> None:
    # Even after the GCM tag: this finds errors between hashing and sealing, such as bad memory.
    if blob.fingerprint is not None and not store.matches(block, blob.fingerprint):
        raise IntegrityError("holds other bytes than were backed up: its fingerprint differs")
