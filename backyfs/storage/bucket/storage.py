"""Objects in a bucket. A blob's key is its uid, without directories, as backy2 wrote it; named objects are `catalog/…`.

A put that has returned is durable, because an object store answers when it has stored an object. So there is nothing to
flush, and an object is readable at once.
"""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from backyfs.errors import (
    IntegrityError,
    ObjectMissingError,
    ObjectsKeptError,
    ObjectUnreadableError,
    StorageAwayError,
    StorageFullError,
    StorageRefusedError,
    WrongStorageError,
)
from backyfs.model import BlobUid
from backyfs.remedies import Advice
from backyfs.storage.bucket.blobnames import is_name_of_blob
from backyfs.storage.bucket.failures import is_beyond_end, is_conflict, strange_answer
from backyfs.storage.bucket.listing import Listing
from backyfs.storage.keys import MARKER_NAME, NAMED, Key, ObjectName, check_key, is_blob, is_name
from backyfs.storage.protocol import MAX_OBJECT_BYTES, StoredObject, Traits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from obstore import ObjectMeta
    from obstore.store import ObjectStore

    from backyfs.model import Buffer, RequestCounts
    from backyfs.storage.bucket.foreignnames import BucketLister
    from backyfs.storage.bucket.requests import Requests

T = TypeVar("T")

WORTHWHILE_REQUESTS = 128  # in flight at once

_PAUSE_S = 1.0  # before an object is put once more
_DELETION_BYTES = 4 << 10  # for the time limit, a deletion counts as this many bytes
_DELETIONS = 1000  # in one request, at most
CLOCK = ObjectName(f"{NAMED}/clock")  # is put to learn what time it is in the store
_FIRST_BYTES = 8 << 20  # that the first blob may have


class BucketStorage:
    """A storage in a bucket, or below a prefix of one."""

    def __init__(
        self,
        store: ObjectStore,
        requests: Requests,
        *,
        place: str,
        attributes: dict[str, str] | None = None,
        lister: BucketLister | None = None,
        paid_days: int = 0,
    ) -> None:
        """Use a store of obstore.

        `place` names it. `attributes` are those of new objects, such as their storage class. `lister` lists a bucket
        that obstore cannot list. `paid_days` is for how many days each object is paid at least.
        """
        import obstore  # noqa: PLC0415 - only this kind of storage needs it

        self._library = obstore
        self._store = store
        self._requests = requests
        self._place = place
        self._attributes = attributes
        self._lister = lister
        self._marker: bytes | None = None  # as it was last; None: it was never there
        self._typical_bytes = _FIRST_BYTES  # most blobs are about as large as the one before
        self.traits = Traits(requests=WORTHWHILE_REQUESTS, deletions=_DELETIONS, paid_days=paid_days)

    def close(self) -> None:
        """Cancel what is in flight."""
        self._requests.close()

    @property
    def round_trip_s(self) -> float:
        """The shortest time in which a request was answered, in seconds; 0: there was none yet."""
        return self._requests.round_trip_s

    @property
    def requests(self) -> RequestCounts:
        """The requests that were sent since the storage was opened."""
        return self._requests.tally.counts()

    def put(self, key: Key, parts: Sequence[Buffer]) -> int:
        """Store an object from its parts and return its size in bytes. It is durable."""
        check_key(key)
        views = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        size = sum(view.nbytes for view in views)
        self._requests.send(
            "put",
            lambda: self._library.put_async(
                self._store, key, views or b"", use_multipart=False, attributes=self._attributes
            ),
            size=size,
            key=key,
        )
        self._requests.tally.add("put", size_bytes=size)
        self._note_marker(key, b"".join(views) if key == MARKER_NAME else b"")
        return size

    def put_new(self, key: Key, content: Buffer) -> bool:
        """Store an object unless its key exists.

        If an answer got lost, the content of the object says who stored it. So of callers with the same content, more
        than one may return True then.
        """
        check_key(key)
        body = bytes(content)

        async def create() -> bool:
            try:
                await self._library.put_async(
                    self._store, key, body, use_multipart=False, mode="create", attributes=self._attributes
                )
            except self._library.exceptions.AlreadyExistsError as error:
                if is_conflict(error):
                    raise
                return False
            return True

        deadline_s = time.monotonic() + self._requests.patience.retry_s
        while True:
            try:
                is_stored = self._requests.send("put", create, size=len(body), key=key, repeats=False)
            except StorageAwayError:
                if time.monotonic() > deadline_s:
                    raise
                try:
                    is_stored = self.get(key) == body  # waits until the store answers
                except ObjectMissingError:
                    self._requests.pause(_PAUSE_S)
                    continue
            if is_stored:
                self._requests.tally.add("put", size_bytes=len(body))
                self._note_marker(key, body)
            return is_stored

    def flush(self) -> None:
        """Do nothing: what was put is durable."""

    def get(self, key: Key, *, most: int = MAX_OBJECT_BYTES) -> Buffer:
        """Return an object.

        Raises:
            ObjectMissingError: it does not exist.
            IntegrityError: it has more than `most` bytes.
        """
        check_key(key)
        is_of_blob = is_blob(key)
        expected = min(most, self._typical_bytes) if is_of_blob else 0
        meta, content = self._read(key, [(partial(self._fetch, key, most), expected)], is_estimate=True)[0]
        if content is None:
            raise _too_large(key, meta["size"], most)
        self._requests.tally.add("get", size_bytes=len(content))
        if is_of_blob:
            self._typical_bytes = len(content)
        self._note_marker(key, content)
        return content

    async def _fetch(self, key: Key, most: int) -> tuple[ObjectMeta, Buffer | None]:
        """Return what the store says about an object, and the object; None: it has more than `most` bytes."""
        answer = await self._library.get_async(self._store, key)
        meta: ObjectMeta = answer.meta
        if meta["e_tag"] is None:  # an error document, or a page of a proxy, that came with status 200
            raise strange_answer("an object without ETag", self._place)
        if meta["size"] > most:
            return meta, None
        # A view of what the library received, because copying it would take a third of its time.
        self._requests.allow(meta["size"])
        return meta, memoryview(await answer.bytes_async())

    def get_range(self, key: Key, offset: int, length: int) -> bytes:
        """Return bytes [offset, offset + length) of an object: fewer, or none, if it ends earlier.

        Raises:
            ObjectMissingError: it does not exist.
        """
        return self.get_ranges(key, [range(offset, offset + length)])[0]

    def get_ranges(self, key: Key, wanted: Sequence[range]) -> list[bytes]:
        """Return several ranges of bytes of an object, with one request each, all at the same time.

        Raises:
            ObjectMissingError: it does not exist.
        """
        check_key(key)
        parts = [range(part.start, min(part.stop, part.start + MAX_OBJECT_BYTES)) for part in wanted]

        async def request(part: range) -> bytes:
            try:
                # An empty range is refused, but must still find out whether the object exists.
                found = await self._library.get_range_async(
                    self._store, key, start=part.start, length=max(1, len(part))
                )
            except Exception as error:
                if is_beyond_end(error):
                    return b""
                raise
            return bytes(found)[: len(part)]

        found = self._read(key, [(partial(request, part), len(part)) for part in parts])
        self._requests.tally.add("get", size_bytes=sum(map(len, found)))
        return found

    def _read(
        self, key: Key, requests: Sequence[tuple[Callable[[], Awaitable[T]], int]], *, is_estimate: bool = False
    ) -> list[T]:
        """Send requests to read an object, with their bytes; ask a second time before calling it missing."""
        try:
            return self._requests.send_all("get", requests, key=key, is_estimate=is_estimate)
        except ObjectMissingError:
            self._require_storage(key)
            if key == MARKER_NAME:
                raise
        return self._requests.send_all("get", requests, key=key, is_estimate=is_estimate)

    def _require_storage(self, key: Key) -> None:
        """Refuse to call an object missing if the bucket is gone, or is not, or no longer, that of a repository."""
        if self._marker is not None and key != MARKER_NAME:
            _, found = self._read(MARKER_NAME, [(partial(self._fetch, MARKER_NAME, MAX_OBJECT_BYTES), 0)])[0]
            # While a repository takes over the identity of another one, the marker names both.
            if not _repositories(found or b"") & _repositories(self._marker):
                raise WrongStorageError(
                    "the marker of the repository was replaced by that of another one",
                    subject=f"storage {self._place}:",
                    remedy="correct [DataBackend], or find out why its address leads elsewhere now",
                )
            return
        if self._marker is not None:
            raise WrongStorageError(
                "the marker of the repository is gone: the bucket was emptied or replaced",
                subject=f"storage {self._place}:",
                remedy=Advice.WRITE_CATALOG_IF_LOST(),
            )
        next(self.entries(""), None)  # fails if the bucket does not exist

    def size(self, key: Key) -> None:
        """Return None: finding out takes a request."""
        check_key(key)

    def delete(self, keys: Sequence[Key]) -> None:
        """Delete objects, a thousand in a request.

        Raises:
            ObjectsKeptError: some keys are malformed.
            StorageRefusedError: the credentials do not permit it.
        """
        malformed: dict[str, ObjectUnreadableError] = {}
        wanted: list[str] = []
        for key in keys:
            try:
                check_key(key)
                wanted.append(key)
            except ObjectUnreadableError as error:
                malformed[key] = error
        for first in range(0, len(wanted), _DELETIONS):
            self._delete(wanted[first : first + _DELETIONS])
        if malformed:
            raise ObjectsKeptError(malformed)

    def _delete(self, keys: list[str]) -> None:
        # Some stores delete one object after the other before they answer.
        size = len(keys) * _DELETION_BYTES
        self._requests.send("delete", lambda: self._library.delete_async(self._store, keys), size=size)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield every object whose key begins with a prefix, in the order of the keys. Other objects are ignored.

        The ages of named objects are unknown if only such objects are listed: nobody needs them.
        """
        now_s = -float("inf") if prefix.startswith(f"{NAMED}/") else self._now_s()
        for path, size, stored_s in self.entries(prefix):
            key = _key_of(path)
            if key is not None and key != CLOCK:
                yield StoredObject(key=key, size_bytes=size, age_s=now_s - stored_s)

    def entries(self, prefix: str) -> Iterator[tuple[str, int, float]]:
        """Yield path, size in bytes and time of storing of every object, ours or not.

        With a prefix, only those whose path begins with it.
        """
        listing = Listing(self._library, self._store, prefix, self._lister)
        while not listing.is_done:
            yield from self._requests.send("list", listing.next_page)

    def _now_s(self) -> float:
        """Return the time of the store; -inf if it cannot be found out, because nothing can be stored there."""
        try:
            self.put(CLOCK, [b""])
            meta, _ = self._read(CLOCK, [(partial(self._fetch, CLOCK, MAX_OBJECT_BYTES), 0)])[0]
        except (StorageRefusedError, StorageFullError, ObjectMissingError):  # another command has deleted it
            return -float("inf")
        with contextlib.suppress(StorageRefusedError):
            self._delete([CLOCK])
        return meta["last_modified"].timestamp()

    def sweep(self, older_than_s: float) -> int:  # noqa: ARG002 - there is nothing to remove
        """Remove nothing: an object that was not put as a whole does not exist."""
        return 0

    def distrust(self, key: Key) -> bool:  # noqa: ARG002 - it is the same for all objects
        """Return True: a proxy can answer in place of the store, or the bytes were changed on the way."""
        return True

    def _note_marker(self, key: Key, content: Buffer) -> None:
        if key == MARKER_NAME:
            self._marker = bytes(content)


def _repositories(marker: Buffer) -> frozenset[bytes]:
    """Return the lines of a marker that name repositories."""
    return frozenset(bytes(marker).splitlines()[1:])


def _key_of(path: str) -> Key | None:
    """Return the key of an object; None: it is not ours."""
    if is_name_of_blob(path):
        return BlobUid(path)
    return ObjectName(path) if is_name(path) else None


def _too_large(key: Key, size: int, most: int) -> IntegrityError:
    if is_blob(key):
        return IntegrityError(f"has {size} bytes in the storage, more than any block takes", subject=f"blob {key}")
    return IntegrityError(f"has more than {most} bytes, which no object of its kind has", subject=f"object {key}")
