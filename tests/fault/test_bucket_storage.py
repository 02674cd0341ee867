"""A storage in a bucket whose object store answers late, wrongly, or not at all.

What passes is waited for. What lasts is an error of the storage, and never says anything about an object.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from backyfs.errors import (
    InterruptedByUser,
    ObjectMissingError,
    StorageAwayError,
    StorageError,
    StorageRefusedError,
    WrongStorageError,
)
from backyfs.model import BlobUid
from backyfs.storage.bucket import check_new_bucket, open_bucket
from backyfs.storage.bucket.line import Line
from backyfs.storage.bucket.outage import Patience
from backyfs.storage.bucket.requests import Requests
from backyfs.storage.bucket.storage import BucketStorage
from backyfs.storage.keys import ObjectName
from backyfs.storage.marker import put_first_marker, read_marker, replace_marker
from backyfs.storage.rereading import read_twice
from tests.support.buckets import Bucket
from tests.support.faultproxy import FaultProxy
from tests.support.faults import (
    ACCESS_DENIED,
    ERROR_WITHIN_SUCCESS,
    INTERNAL_ERROR,
    NO_SUCH_BUCKET,
    NO_SUCH_KEY,
    REQUEST_TIME_TOO_SKEWED,
    SLOW_DOWN,
    TOO_MANY_REQUESTS,
    Answer,
    Bandwidth,
    Delay,
    Reset,
    Silence,
    Truncation,
)
from tests.support.repositories import wait_for
from tests.support.requestlog import Verb
from tests.support.services.server import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.faults import Fault
    from tests.support.services.objectstore import S3Server

A = BlobUid("a1b2c3d4e5f60718293a4b5c6d7e8f90")
B = BlobUid("b1b2ffffffffffffffffffffffffffff")
NEW = BlobUid("c1b2ffffffffffffffffffffffffffff")
CLAIM = ObjectName("catalog/claim")
CONTENT = bytes(range(200))
MANY = 1100  # objects: more than a page of a listing
OWNER = "0f5b2c1e-9a64-4f0b-8a57-6b1de0b5a0f3"
SHORT = Patience(retry_s=0.4, first_s=0.4, notice_s=0, pause_s=0.01)
LONG = replace(SHORT, retry_s=60, first_s=60)
NO_CODE = Answer(404, "")  # of a proxy that does not know the store at the moment

PASSING: dict[str, Fault] = {
    "delay": Delay(0.05),
    "503": SLOW_DOWN,
    "429": TOO_MANY_REQUESTS,
    "500": INTERNAL_ERROR,
    "reset": Reset(forward=False),
    "answer lost": Reset(),
    "reset within": Reset(body_bytes=3),
    "truncated": Truncation(body_bytes=3, honest=False),
    "error within success": ERROR_WITHIN_SUCCESS,
    "404 without code": NO_CODE,
    "silence": Silence(),
    "silence within": Silence(body_bytes=3),
}
_NAMES_OF_LASTING = ("503", "429", "500", "reset", "error within success", "404 without code", "silence")
LASTING = {name: PASSING[name] for name in _NAMES_OF_LASTING}
# Each does something, and fails unless it was done.
USES: dict[str, Callable[[BucketStorage], None]] = {}


def listed(function: Callable[[BucketStorage], None]) -> Callable[[BucketStorage], None]:
    USES[function.__name__] = function
    return function


@listed
def get(storage: BucketStorage) -> None:
    assert storage.get(A) == CONTENT


@listed
def get_range(storage: BucketStorage) -> None:
    assert storage.get_range(A, 10, 20) == CONTENT[10:30]


@listed
def get_ranges(storage: BucketStorage) -> None:
    assert storage.get_ranges(A, [range(10), range(50, 99)]) == [CONTENT[:10], CONTENT[50:99]]


@listed
def list_objects(storage: BucketStorage) -> None:
    assert stored(storage) == {A: len(CONTENT), B: 1, "catalog/marker": 66}


@listed
def put(storage: BucketStorage) -> None:
    assert storage.put(NEW, [b"new ", CONTENT]) == len(CONTENT) + 4
    assert stored(storage)[NEW] == len(CONTENT) + 4


@listed
def put_new(storage: BucketStorage) -> None:
    assert storage.put_new(CLAIM, b"ours")
    assert not storage.put_new(CLAIM, b"theirs")
    assert storage.get(CLAIM) == b"ours"


@listed
def delete(storage: BucketStorage) -> None:
    storage.delete([B])
    assert B not in stored(storage)


def with_time_for(fault: str, patience: Patience) -> Patience:
    """Return a patience with which no request waits long for a silent store."""
    return replace(patience, request_s=1) if "silence" in fault else patience


def stored(storage: BucketStorage) -> dict[str, int | None]:
    return {found.key: found.size_bytes for found in storage.list()}


@pytest.fixture
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Use SeaweedFS, or the server that the parameters of a test name: where servers differ."""
    server: S3Server = request.getfixturevalue(f"{getattr(request, 'param', 'seaweedfs')}_server")
    return server


@pytest.fixture(scope="module")
def filled(seaweedfs_server: S3Server) -> Iterator[Bucket]:
    """Give a bucket with more objects than fit into a page of a listing."""
    bucket = Bucket.make(seaweedfs_server)
    with closing(open_bucket(bucket.config(), lambda: False)) as storage, ThreadPoolExecutor(32) as threads:
        list(threads.map(lambda number: storage.put(BlobUid(f"{number:032}"), [b"x"]), range(MANY)))
    yield bucket
    bucket.remove()


def open_through(
    proxy: FaultProxy, bucket: Bucket, patience: Patience, stop: Callable[[], bool] = lambda: False
) -> BucketStorage:
    return open_bucket(bucket.config(endpoint=proxy.endpoint), stop, patience)


@pytest.fixture
def prepared(bucket: Bucket) -> Bucket:
    """Give a bucket with a marker and two blobs."""
    with closing(open_bucket(bucket.config(), lambda: False)) as storage:
        assert put_first_marker(storage, OWNER)
    bucket.fill({A: CONTENT, B: b"x"})
    return bucket


# What passes


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_waited_for(fault: str, prepared: Bucket, fault_proxy: FaultProxy) -> None:
    times = 1 if fault in {"delay", "silence", "silence within"} else 2
    with closing(open_through(fault_proxy, prepared, with_time_for(fault, LONG))) as storage:
        read_marker(storage)
        for name, use in USES.items():
            rule = fault_proxy.add(PASSING[fault], times=times)
            use(storage)
            assert rule.times == 0, name


def test_a_refused_connection_that_passes_is_waited_for(
    prepared: Bucket, fault_proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(open_through(fault_proxy, prepared, LONG)) as storage, ThreadPoolExecutor(1) as thread:
        for use in USES.values():
            caplog.clear()
            with fault_proxy.refusing():
                done = thread.submit(use, storage)
                wait_for(lambda: bool(caplog.records), "the outage is reported")
            done.result()


@pytest.mark.parametrize("fault", ["503", "reset", "reset within", "truncated", "error within success", "silence"])
def test_a_listing_that_fails_between_its_pages_continues(fault: str, filled: Bucket, fault_proxy: FaultProxy) -> None:
    fault_proxy.add(PASSING[fault], path="continuation-token|start-after", times=2)
    with closing(open_through(fault_proxy, filled, with_time_for(fault, LONG))) as storage:
        found = [stored.key for stored in storage.list("00")]
    assert found == [f"{number:032}" for number in range(MANY)]


@pytest.mark.parametrize("fault", [Truncation(body_bytes=30, honest=True), NO_SUCH_KEY])
@pytest.mark.parametrize("verb", [Verb.LIST, Verb.DELETE_MANY])
def test_an_answer_that_makes_no_sense_is_not_believed(
    fault: Fault, verb: Verb, prepared: Bucket, fault_proxy: FaultProxy
) -> None:
    fault_proxy.add(fault, verbs=frozenset({verb}), times=2)
    with closing(open_through(fault_proxy, prepared, LONG)) as storage:
        list_objects(storage)
        delete(storage)


def test_an_object_of_the_right_kind_and_the_wrong_length_can_be_read_again(
    prepared: Bucket, fault_proxy: FaultProxy
) -> None:
    fault_proxy.add(Truncation(body_bytes=30, honest=True), verbs=frozenset({Verb.GET}), times=1)
    with closing(open_through(fault_proxy, prepared, LONG)) as storage:
        assert read_marker(storage) == frozenset({OWNER})
        assert storage.distrust(A)


def test_a_key_that_is_put_is_never_missing(prepared: Bucket, fault_proxy: FaultProxy) -> None:
    with closing(open_through(fault_proxy, prepared, SHORT)) as storage:
        with fault_proxy.during(NO_SUCH_KEY, verbs=frozenset({Verb.PUT})), pytest.raises(StorageAwayError):
            storage.put(NEW, [b"x"])
        put(storage)


# What lasts


@pytest.mark.parametrize("fault", LASTING)
def test_a_fault_that_lasts_is_an_outage_until_it_ends(
    fault: str, prepared: Bucket, fault_proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "backyfs")
    with closing(open_through(fault_proxy, prepared, with_time_for(fault, SHORT))) as storage:
        read_marker(storage)
        for use in USES.values():
            caplog.clear()
            with fault_proxy.during(LASTING[fault]), pytest.raises(StorageAwayError, match="does not answer"):
                use(storage)
            use(storage)
            levels = [record.levelno for record in caplog.records]
            assert levels in ([logging.WARNING, logging.INFO], [])  # nothing if the first attempt took all the time


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        (ACCESS_DENIED, StorageRefusedError, "access is denied"),
        (REQUEST_TIME_TOO_SKEWED, StorageRefusedError, "clock"),
        (NO_SUCH_BUCKET, WrongStorageError, "bucket does not exist"),
        (Answer(301, "PermanentRedirect"), StorageError, "region"),
        (Answer(507, "InsufficientStorage"), StorageError, "no room"),
    ],
)
def test_what_waiting_does_not_change_is_reported_after_one_request(
    fault: Fault, error: type[StorageError], text: str, prepared: Bucket, fault_proxy: FaultProxy
) -> None:
    with closing(open_through(fault_proxy, prepared, LONG)) as storage, fault_proxy.during(fault):
        for use in USES.values():
            with pytest.raises(error, match=text) as raised:
                use(storage)
            assert not isinstance(raised.value, ObjectMissingError)
        # Two ranges are asked for at the same time, and a listing asks what time it is.
        assert len(fault_proxy.log.requests) <= len(USES) + 2


# What is missing


@pytest.mark.parametrize("verb", [Verb.GET, Verb.RANGE])
def test_an_object_that_is_missing_once_is_asked_for_again(
    verb: Verb, prepared: Bucket, fault_proxy: FaultProxy
) -> None:
    with closing(open_through(fault_proxy, prepared, SHORT)) as storage:
        read_marker(storage)
        fault_proxy.add(NO_SUCH_KEY, path=A, times=1)
        (get if verb is Verb.GET else get_range)(storage)


def test_an_object_is_missing_if_the_store_says_so_twice_and_still_has_the_marker(
    prepared: Bucket, fault_proxy: FaultProxy
) -> None:
    with closing(open_through(fault_proxy, prepared, SHORT)) as storage:
        read_marker(storage)
        fault_proxy.log.clear()
        for read in (lambda: storage.get(NEW), lambda: storage.get_range(NEW, 0, 9)):
            with pytest.raises(ObjectMissingError):
                read()
        asked = [request.path.rpartition("/")[2] for request in fault_proxy.log.requests]
        assert asked == [NEW, "marker", NEW] * 2


def test_nothing_is_missing_while_the_store_knows_no_object(prepared: Bucket, fault_proxy: FaultProxy) -> None:
    with closing(open_through(fault_proxy, prepared, SHORT)) as storage:
        read_marker(storage)
        with fault_proxy.during(NO_SUCH_KEY), pytest.raises(WrongStorageError, match="emptied or replaced"):
            storage.get(A)
        get(storage)


def test_nothing_is_missing_from_a_bucket_that_was_emptied(prepared: Bucket) -> None:
    with closing(open_bucket(prepared.config(), lambda: False, SHORT)) as storage:
        read_marker(storage)
        prepared.delete(*prepared.keys())
        for read in (lambda: storage.get(A), lambda: storage.get_range(A, 0, 9)):
            with pytest.raises(WrongStorageError, match="emptied or replaced"):
                read()


@pytest.mark.parametrize("use", [get, get_range, get_ranges, list_objects, put, delete])
@pytest.mark.parametrize("s3_server", ["seaweedfs", "radosgw"], indirect=True)
def test_nothing_is_missing_from_a_bucket_that_is_gone(
    use: Callable[[BucketStorage], None], s3_server: S3Server
) -> None:
    bucket = Bucket(s3_server, f"test-{secrets.token_hex(8)}")
    with closing(open_bucket(bucket.config(), lambda: False, SHORT)) as storage, pytest.raises(WrongStorageError):
        use(storage)


def test_what_is_read_twice_has_another_chance(prepared: Bucket, fault_proxy: FaultProxy) -> None:
    fault_proxy.add(Truncation(body_bytes=9, honest=True), path="marker", times=1)
    with closing(open_through(fault_proxy, prepared, SHORT)) as storage:
        lengths = []
        assert read_twice(storage, A, lambda: lengths.append(len(storage.get(A)))) is None
        assert lengths == [len(CONTENT)]


# Claims


@pytest.mark.parametrize("fault", [Reset(), SLOW_DOWN, Answer(409, "ConditionalRequestConflict")])
def test_an_object_of_others_is_not_ours_whatever_happens_on_the_way(
    fault: Fault, prepared: Bucket, fault_proxy: FaultProxy
) -> None:
    prepared.put(CLAIM, b"theirs")
    fault_proxy.add(fault, verbs=frozenset({Verb.PUT}), times=1)
    with closing(open_through(fault_proxy, prepared, LONG)) as storage:
        assert not storage.put_new(CLAIM, b"ours")
    assert prepared.get(CLAIM) == b"theirs"


def test_a_claim_is_not_lost_in_a_conflict_with_nobody(prepared: Bucket, fault_proxy: FaultProxy) -> None:
    fault_proxy.add(Answer(409, "ConditionalRequestConflict"), verbs=frozenset({Verb.PUT}), times=2)
    with closing(open_through(fault_proxy, prepared, LONG)) as storage:
        put_new(storage)


# Many requests


def test_many_requests_report_one_outage_and_its_end(
    prepared: Bucket, fault_proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "backyfs")
    with closing(open_through(fault_proxy, prepared, LONG)) as storage, ThreadPoolExecutor(32) as threads:
        read_marker(storage)
        with fault_proxy.during(SLOW_DOWN):
            reads = [threads.submit(get, storage) for _ in range(32)]
            wait_for(lambda: fault_proxy.log.counts[Verb.GET] > 100, "requests are repeated")
        for read in reads:
            read.result()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_single_requests_that_a_busy_store_refuses_are_not_reported(
    prepared: Bucket, fault_proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "backyfs")
    fault_proxy.add(SLOW_DOWN, times=20)
    with (
        closing(open_through(fault_proxy, prepared, replace(LONG, notice_s=30))) as storage,
        ThreadPoolExecutor(8) as threads,
    ):
        for read in [threads.submit(get, storage) for _ in range(64)]:
            read.result()
    assert caplog.records == []


def test_requests_that_wait_for_their_turn_are_given_up_together(prepared: Bucket, fault_proxy: FaultProxy) -> None:
    patience = replace(SHORT, request_s=1, retry_s=1.5)
    requests = Requests("here", patience=patience, stop=lambda: False, line=Line(requests=1))
    store = prepared.store(endpoint=fault_proxy.endpoint)
    with closing(BucketStorage(store, requests, place="here")) as storage, ThreadPoolExecutor(16) as threads:
        read_marker(storage)
        fault_proxy.log.clear()
        with fault_proxy.during(Silence()):
            reads = [threads.submit(get, storage) for _ in range(16)]
            errors = [read.exception() for read in reads]
        assert {type(error) for error in errors} == {StorageAwayError}
        assert fault_proxy.log.counts[Verb.GET] <= 4  # and not some for each
        get(storage)


def test_one_verb_that_fails_is_an_outage_although_others_work(
    prepared: Bucket, fault_proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "backyfs")
    with closing(open_through(fault_proxy, prepared, SHORT)) as storage:
        with fault_proxy.during(SLOW_DOWN, verbs=frozenset({Verb.PUT})), ThreadPoolExecutor(1) as thread:
            failing = thread.submit(put, storage)
            while not failing.done():
                get(storage)
            assert isinstance(failing.exception(), StorageAwayError)
        get(storage)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


@pytest.mark.parametrize("fault", [Silence(), Silence(body_bytes=1), SLOW_DOWN])
def test_a_command_that_is_asked_to_end_does_not_wait_for_a_store(
    fault: Fault, prepared: Bucket, fault_proxy: FaultProxy
) -> None:
    ends = threading.Event()
    patience = Patience(request_s=3600, retry_s=3600)
    with (
        closing(open_through(fault_proxy, prepared, patience, ends.is_set)) as storage,
        ThreadPoolExecutor(1) as thread,
    ):
        read_marker(storage)
        fault_proxy.add(fault)
        for use in USES.values():
            ends.clear()
            fault_proxy.log.clear()
            waiting = thread.submit(use, storage)
            wait_for(lambda: bool(fault_proxy.log.requests), "a request is sent")
            ends.set()
            error = waiting.exception()
            # An answer without a body is complete.
            assert isinstance(error, InterruptedByUser) or (error is None and fault == Silence(body_bytes=1))


def test_a_claim_that_cannot_be_made_does_not_flood_the_store(prepared: Bucket, fault_proxy: FaultProxy) -> None:
    ends = threading.Event()
    patience = Patience(retry_s=3600, pause_s=0.01)
    with (
        closing(open_through(fault_proxy, prepared, patience, ends.is_set)) as storage,
        ThreadPoolExecutor(1) as thread,
    ):
        read_marker(storage)
        fault_proxy.add(SLOW_DOWN, verbs=frozenset({Verb.PUT}))
        waiting = thread.submit(storage.put_new, CLAIM, b"ours")
        wait_for(lambda: fault_proxy.log.counts[Verb.PUT] >= 2, "it is tried again")
        ends.set()
        assert isinstance(waiting.exception(), InterruptedByUser)
        assert fault_proxy.log.counts[Verb.PUT] < 20


def test_a_large_object_after_a_small_one_gets_the_time_for_its_bytes(
    prepared: Bucket, fault_proxy: FaultProxy
) -> None:
    content = bytes(4 << 20)
    prepared.put(NEW, content)
    with closing(open_through(fault_proxy, prepared, replace(LONG, request_s=1, retry_s=0))) as storage:
        get(storage)
        fault_proxy.add(Bandwidth(2 << 20))  # it takes twice as long as a request may take without its bytes
        assert storage.get(NEW) == content


def test_nothing_is_missing_from_a_bucket_of_another_repository(prepared: Bucket) -> None:
    with closing(open_bucket(prepared.config(), lambda: False, SHORT)) as storage:
        read_marker(storage)
        with closing(open_bucket(prepared.config(), lambda: False)) as other:
            replace_marker(other, OWNER, "12345678-aaaa")
        with pytest.raises(ObjectMissingError):  # it takes over the identity of another one
            storage.get(NEW)
        with closing(open_bucket(prepared.config(), lambda: False)) as other:
            replace_marker(other, "12345678-aaaa")
        with pytest.raises(WrongStorageError, match="the marker of the repository was replaced"):
            storage.get(NEW)


def test_a_storage_that_is_closed_ends_its_requests_and_takes_no_others(
    prepared: Bucket, fault_proxy: FaultProxy
) -> None:
    storage = open_through(fault_proxy, prepared, replace(LONG, request_s=3600))
    read_marker(storage)
    with fault_proxy.during(Silence()), ThreadPoolExecutor(16) as threads:
        waiting = [threads.submit(get, storage) for _ in range(16)]
        wait_for(lambda: fault_proxy.log.in_flight > 0, "a request is sent")
        storage.close()
        errors = [one.exception() for one in waiting]
    assert {str(error) for error in errors} == {f"storage s3://{prepared.name} was closed"}
    with pytest.raises(StorageError, match="was closed"):
        get(storage)


# Permissions


@pytest.mark.parametrize("s3_server", ["seaweedfs", "radosgw"], indirect=True)
def test_credentials_that_may_not_delete_are_reported_as_such(s3_server: S3Server) -> None:
    bucket = Bucket.make(s3_server)
    bucket.fill({A: CONTENT, B: b"x"})
    with closing(open_bucket(bucket.config(user=s3_server.appender), lambda: False, SHORT)) as storage:
        put_new(storage)
        with pytest.raises(StorageRefusedError, match="access is denied"):
            storage.delete([A, B])
        assert {found.key for found in storage.list()} >= {A, B, CLAIM}
    assert {A, B} <= set(bucket.keys())
    bucket.remove()


@pytest.mark.parametrize("s3_server", ["seaweedfs", "radosgw"], indirect=True)
def test_credentials_that_may_only_read_read_everything(s3_server: S3Server) -> None:
    bucket = Bucket.make(s3_server)
    bucket.fill({A: CONTENT, B: b"x"})
    with closing(open_bucket(bucket.config(user=s3_server.reader), lambda: False, SHORT)) as storage:
        get(storage)
        get_ranges(storage)
        assert {found.key for found in storage.list()} == {A, B}
        for change in (lambda: storage.put(NEW, [b"x"]), lambda: storage.put_new(CLAIM, b"x")):
            with pytest.raises(StorageRefusedError, match="access is denied"):
                change()
    assert bucket.keys() == [A, B]
    bucket.remove()


# Deletions


def test_objects_are_deleted_by_the_thousand(filled: Bucket, fault_proxy: FaultProxy) -> None:
    with closing(open_through(fault_proxy, filled, LONG)) as storage:
        storage.delete([BlobUid(f"{number:032x}") for number in range(MANY, MANY + 2500)])
    assert fault_proxy.log.counts == {Verb.DELETE_MANY: 3}


# What is not an object store, and what is in the way


@contextmanager
def answering(act: Callable[[socket.socket], object]) -> Iterator[str]:
    """Listen, and do something with each connection; yield the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as open_ones:

        def accept() -> None:
            with suppress(OSError):  # it was shut down
                while True:
                    act(open_ones.enter_context(listener.accept()[0]))

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def answer_with_a_page(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    page = b"<html><body>It works!</body></html>"
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(page), page))
    connection.shutdown(socket.SHUT_WR)


def answer_that_nothing_is_there(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 9\r\n\r\nnot found")
    connection.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize(
    "act",
    [answer_with_a_page, answer_that_nothing_is_there, socket.socket.close, lambda _connection: None],
    ids=["a page for everything", "404", "closes", "is silent"],
)
def test_something_else_than_an_object_store_is_no_storage(
    act: Callable[[socket.socket], object], seaweedfs_server: S3Server
) -> None:
    bucket = Bucket(seaweedfs_server, "none")
    patience = replace(SHORT, request_s=1)
    with answering(act) as url, closing(open_bucket(bucket.config(endpoint=url), lambda: False, patience)) as storage:
        for use in USES.values():
            with pytest.raises(StorageAwayError, match="does not answer"):
                use(storage)


def test_an_empty_bucket_is_not_seen_where_there_is_none(prepared: Bucket) -> None:
    with answering(answer_with_a_page) as url, pytest.raises(StorageAwayError, match="not the answer of an object"):
        check_new_bucket(prepared.config(endpoint=url, retry_time=1), may_hold_blobs=False)


def test_a_proxy_of_the_environment_is_named_if_it_does_not_answer(
    prepared: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    [port] = free_ports(1)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with closing(open_bucket(prepared.config(), lambda: False, SHORT)) as storage:
        for use in USES.values():
            with pytest.raises(StorageAwayError, match="through the proxy that HTTP_PROXY names"):
                use(storage)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with closing(open_bucket(prepared.config(), lambda: False, SHORT)) as storage:
        for use in USES.values():
            use(storage)


def test_variables_of_the_environment_do_not_change_what_is_configured(
    prepared: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    [port] = free_ports(1)
    for name, value in {
        "ENDPOINT_URL": f"http://127.0.0.1:{port}", "ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
        "SESSION_TOKEN": "stray", "ACCESS_KEY_ID": "stray", "SECRET_ACCESS_KEY": "stray", "PROFILE": "stray",
        "REGION": "mars-1", "DEFAULT_REGION": "mars-1", "BUCKET": "stray", "BUCKET_NAME": "stray",
        "SKIP_SIGNATURE": "true", "VIRTUAL_HOSTED_STYLE_REQUEST": "true", "UNSIGNED_PAYLOAD": "true",
        "CHECKSUM_ALGORITHM": "sha256", "S3_EXPRESS": "true", "REQUEST_PAYER": "true", "PROXY_URL": "http://x.invalid",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    with closing(open_bucket(prepared.config(), lambda: False, SHORT)) as storage:
        read_marker(storage)
        for use in USES.values():
            use(storage)
