"""Requests to a bucket are counted as a proxy in front of it counts them, and stay within the limits of the storage."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from backyfs.errors import ObjectMissingError, StorageAwayError
from backyfs.model import BlobUid, RequestCount
from backyfs.storage.keys import ObjectName
from backyfs.storage.registry import open_storage
from tests.support.faults import INTERNAL_ERROR, SLOW_DOWN, Delay
from tests.support.requestlog import READS, Verb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backyfs.storage.protocol import Storage
    from tests.support.buckets import Bucket
    from tests.support.faultproxy import FaultProxy

    Open = Callable[..., Storage]

UIDS = [BlobUid(f"{number:032x}") for number in range(12)]
PAGE = ObjectName("catalog/pages/0f/0f5b2c1e-9a64-4f0b-8a57-6b1de0b5a0f3")
KIB = 1 << 10
# The verbs of the log by those of the program.
VERBS = {
    "put": {Verb.PUT},
    "get": READS,
    "head": {Verb.HEAD},
    "list": {Verb.LIST},
    "delete": {Verb.DELETE, Verb.DELETE_MANY},
}


@pytest.fixture
def open_bucket(bucket: Bucket, fault_proxy: FaultProxy) -> Iterator[Open]:
    """Return a function that opens the bucket through the proxy, as a configuration with these settings would."""
    opened: list[Storage] = []

    def open_bucket(**settings: Any) -> Storage:
        opened.append(open_storage(bucket.config(endpoint=fault_proxy.endpoint, **settings)))
        return opened[-1]

    yield open_bucket
    for storage in opened:
        storage.close()


def numbers(storage: Storage) -> dict[str, int]:
    return {verb: count.requests for verb, count in storage.requests.items()}


def seen(proxy: FaultProxy) -> dict[str, int]:
    """Return the requests that the proxy saw, by the verbs of the program."""
    found = {verb: sum(proxy.log.counts[one] for one in verbs) for verb, verbs in VERBS.items()}
    assert sum(found.values()) == len(proxy.log.requests)
    return {verb: count for verb, count in found.items() if count}


def test_every_verb_is_counted_as_the_store_sees_it(open_bucket: Open, fault_proxy: FaultProxy) -> None:
    storage = open_bucket()
    assert storage.requests == {}
    for uid in UIDS:
        storage.put(uid, [b"a" * KIB, b"b" * KIB])
    assert storage.put_new(PAGE, b"page")
    assert not storage.put_new(PAGE, b"another page")
    assert storage.get(UIDS[0]) == b"a" * KIB + b"b" * KIB
    assert storage.get_range(UIDS[0], 0, 100) == b"a" * 100
    assert storage.get_ranges(UIDS[1], [range(10), range(2040, 3000), range(9000, 9001)])[1] == b"b" * 8
    assert len(list(storage.list())) == 13
    storage.delete(UIDS)
    assert numbers(storage) == seen(fault_proxy)
    assert storage.requests["get"] == RequestCount(requests=6, bytes=2 * KIB + 100 + 10 + 8)
    assert storage.requests["put"] == RequestCount(requests=15, bytes=12 * 2 * KIB + 4)  # one to learn the time
    assert storage.requests["list"] == RequestCount(requests=2)  # one to check that the first was complete
    assert storage.requests["delete"] == RequestCount(requests=2)
    assert fault_proxy.log.body_bytes >= storage.requests["put"].bytes
    assert fault_proxy.log.answer_bytes >= storage.requests["get"].bytes


def test_requests_that_are_repeated_count_each_time_and_their_bytes_once(
    open_bucket: Open, fault_proxy: FaultProxy
) -> None:
    storage = open_bucket()
    fault_proxy.add(SLOW_DOWN, verbs=frozenset({Verb.PUT}), times=2)
    storage.put(UIDS[0], [b"x" * KIB])
    fault_proxy.add(INTERNAL_ERROR, verbs=READS, times=1)
    assert storage.get(UIDS[0]) == b"x" * KIB
    assert storage.requests == {
        "get": RequestCount(requests=2, repeated=1, bytes=KIB),
        "put": RequestCount(requests=3, repeated=2, bytes=KIB),
    }
    assert numbers(storage) == seen(fault_proxy)


def test_requests_that_fail_move_no_bytes(open_bucket: Open, fault_proxy: FaultProxy) -> None:
    storage = open_bucket(retry_time=0)
    with pytest.raises(ObjectMissingError):
        storage.get(UIDS[0])
    fault_proxy.add(SLOW_DOWN)
    with pytest.raises(StorageAwayError):
        storage.put(UIDS[0], [b"x" * KIB])
    assert storage.requests["put"] == RequestCount(requests=1)
    assert storage.requests["get"].bytes == 0
    assert numbers(storage) == seen(fault_proxy)


def test_an_object_that_is_smaller_than_the_one_before_counts_with_its_own_size(open_bucket: Open) -> None:
    storage = open_bucket()
    storage.put(UIDS[0], [b"x" * 64 * KIB])
    storage.put(UIDS[1], [b"x"])
    assert [len(storage.get(uid)) for uid in UIDS[:2]] == [64 * KIB, 1]
    assert storage.requests["get"].bytes == 64 * KIB + 1


@pytest.mark.slow
def test_the_pages_of_a_listing_are_counted(bucket: Bucket, open_bucket: Open, fault_proxy: FaultProxy) -> None:
    bucket.fill({f"{number:032x}": b"" for number in range(2100)})
    storage = open_bucket()
    for prefix in ("", "catalog/", f"{1050:029x}"):
        list(storage.list(prefix))
    assert numbers(storage) == seen(fault_proxy)


def test_counts_are_complete_after_the_end_and_from_many_threads(open_bucket: Open, fault_proxy: FaultProxy) -> None:
    with closing(open_bucket()) as storage, ThreadPoolExecutor(8) as threads:
        puts = [threads.submit(storage.put, BlobUid(f"{number:032x}"), [b"12345"]) for number in range(200)]
        while not all(put.done() for put in puts):
            assert storage.requests.get("put", RequestCount()).bytes <= 1000
    assert storage.requests == {"put": RequestCount(requests=200, bytes=1000)}
    assert numbers(storage) == seen(fault_proxy)


# Limits


@pytest.mark.parametrize("most", [1, 3])
def test_simultaneous_writes_limit_the_requests_in_flight(
    open_bucket: Open, fault_proxy: FaultProxy, most: int
) -> None:
    storage = open_bucket(simultaneous_writes=most)
    fault_proxy.add(Delay(0.02))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda uid: storage.put(uid, [b"x"]), UIDS))
    assert fault_proxy.log.most_in_flight == most
    assert seen(fault_proxy) == {"put": len(UIDS)}


@pytest.mark.parametrize("most", [1, 3])
def test_simultaneous_reads_limit_the_requests_in_flight_of_several_ranges(
    open_bucket: Open, fault_proxy: FaultProxy, most: int
) -> None:
    storage = open_bucket(simultaneous_reads=most)
    content = bytes(range(250))
    storage.put(UIDS[0], [content])
    fault_proxy.log.clear()
    fault_proxy.add(Delay(0.02))
    wanted = [range(start, start + 50) for start in range(0, 250, 50)]
    with ThreadPoolExecutor(8) as threads:
        ranges = [threads.submit(storage.get_ranges, UIDS[0], wanted) for _ in range(4)]
        wholes = [threads.submit(storage.get, UIDS[0]) for _ in range(4)]
        assert [b"".join(read.result()) for read in ranges] == [content] * 4
        assert [read.result() for read in wholes] == [content] * 4
    assert fault_proxy.log.most_in_flight == most
    assert seen(fault_proxy) == {"get": 4 * len(wanted) + 4}


def test_without_a_limit_ranges_take_the_time_of_one(open_bucket: Open, fault_proxy: FaultProxy) -> None:
    storage = open_bucket(bandwidth_read=1 << 30)
    storage.put(UIDS[0], [bytes(250)])
    fault_proxy.log.clear()
    fault_proxy.add(Delay(0.5))
    storage.get_ranges(UIDS[0], [range(start, start + 50) for start in range(0, 250, 50)])
    assert fault_proxy.log.most_in_flight == 5


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["write", "read", "ranges"])
def test_bytes_take_the_time_that_the_bandwidth_allows(
    open_bucket: Open, fault_proxy: FaultProxy, direction: str
) -> None:
    storage = open_bucket(**{f"bandwidth_{'write' if direction == 'write' else 'read'}": 512 * KIB})
    act: dict[str, Callable[[BlobUid], object]] = {
        "write": lambda uid: storage.put(uid, [bytes(64 * KIB)]),
        "read": storage.get,
        "ranges": lambda uid: storage.get_ranges(uid, [range(32 * KIB), range(32 * KIB, 64 * KIB)]),
    }
    if direction != "write":
        for uid in UIDS:
            storage.put(uid, [bytes(64 * KIB)])
    fault_proxy.log.clear()
    began = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(act[direction], UIDS))
    assert time.monotonic() - began >= 0.95 * len(UIDS) * 64 / 512
    moved = fault_proxy.log.body_bytes if direction == "write" else fault_proxy.log.answer_bytes
    assert moved >= len(UIDS) * 64 * KIB
    requests = fault_proxy.log.requests
    # The last request may end as soon as it began, so its bytes do not count.
    assert requests[-1].began_s - requests[0].began_s >= 0.9 * (len(UIDS) - 4) * 64 / 512
