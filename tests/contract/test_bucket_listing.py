"""Listing a bucket that others use as well: objects whose names the client library refuses."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from backyfs.model import BlobUid
from backyfs.storage.bucket import open_bucket
from backyfs.storage.keys import ObjectName
from tests.support.signing import accepted
from tests.support.signing import request as signed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backyfs.storage.bucket.storage import BucketStorage
    from tests.support.buckets import Bucket

A = BlobUid("a1b2c3d4e5f60718293a4b5c6d7e8f90")
Z = BlobUid("f1b2ffffffffffffffffffffffffffff")
PAGE = ObjectName("catalog/pages/0f/0f5b2c1e-9a64-4f0b-8a57-6b1de0b5a0f3")
NAMES = [
    "b//c", "b/../c", "tab\there", "catalog//x y", "catalog/a b", "/lead", "dir/", "sp ace", "ümlaut", "per%41cent",
    "c\x01d", "h#x", "q?x", "README", "backup2024",
]  # fmt: skip


def ask(bucket: Bucket, method: str, key: str, body: bytes = b"") -> int:
    """Send a request for an object whose name the library may refuse; return the status."""
    return signed(bucket.server.endpoint, bucket.server.admin, method, f"/{bucket.name}/{key}", body=body).status


def raw_keys(bucket: Bucket) -> int:
    """Return how many objects are in the bucket."""
    text = accepted(
        bucket.server.endpoint, bucket.server.admin, "GET", f"/{bucket.name}", query={"list-type": "2"}
    ).body
    return text.count(b"<Key>")


@pytest.fixture(params=["", "one/two"], ids=["bucket", "prefix"])
def open_shared(request: pytest.FixtureRequest, bucket: Bucket) -> Iterator[Callable[[], BucketStorage]]:
    """Return a function that opens a storage with three objects among those of others."""
    config = bucket.config(prefix=request.param)
    names = [f"{request.param}/{name}" if request.param else name for name in NAMES]
    taken = [name for name in names if ask(bucket, "PUT", name, b"theirs") == 200]
    assert len(taken) >= 5
    with closing(open_bucket(config, lambda: False)) as storage:
        for key in (A, Z, PAGE):
            storage.put(key, [b"ours"])
    yield lambda: open_bucket(config, lambda: False)
    for name in taken:
        ask(bucket, "DELETE", name)


def test_foreign_names_do_not_hide_our_objects(open_shared: Callable[[], BucketStorage]) -> None:
    with closing(open_shared()) as storage:
        assert sorted((found.key, found.size_bytes) for found in storage.list()) == [(A, 4), (PAGE, 4), (Z, 4)]
        assert [found.key for found in storage.list("f1b")] == [Z]
        assert [found.key for found in storage.list("catalog/")] == [PAGE]
        assert all(-60 < found.age_s < 600 for found in storage.list())


def test_deleting_our_objects_leaves_those_of_others(
    bucket: Bucket, open_shared: Callable[[], BucketStorage]
) -> None:
    before = raw_keys(bucket)
    with closing(open_shared()) as storage:
        storage.delete([found.key for found in storage.list()])
        assert list(storage.list()) == []
    assert raw_keys(bucket) == before - 3
