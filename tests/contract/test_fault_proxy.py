"""The fault proxy causes the faults that its rules describe, and no others."""

from __future__ import annotations

import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PermissionDeniedError

from tests.support.buckets import Bucket
from tests.support.certificates import self_signed_certificate
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
    Rule,
    Silence,
    Truncation,
)
from tests.support.repositories import wait_for
from tests.support.requestlog import READS, Verb
from tests.support.separateproxy import SeparateProxy, Traffic
from tests.support.signing import Answer as SignedAnswer
from tests.support.signing import request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from obstore.store import S3Store

MIB = 1 << 20
BLOB = bytes(range(256)) * (4 * MIB // 256)


@pytest.fixture
def s3_server(request: pytest.FixtureRequest) -> Any:
    """Yield SeaweedFS, or the server that the parameters of a test name."""
    return request.getfixturevalue("seaweedfs_server")


@pytest.fixture
def store(bucket: Bucket, fault_proxy: FaultProxy) -> S3Store:
    """Return a client without retries that uses the proxy."""
    return bucket.store(endpoint=fault_proxy.endpoint)


def put(store: S3Store, key: str, content: bytes = b"content") -> None:
    obstore.put(store, key, content, use_multipart=False)


def get(store: S3Store, key: str) -> bytes:
    return bytes(obstore.get(store, key).bytes())


def ask(bucket: Bucket, proxy: FaultProxy, method: str, path: str, **options: Any) -> SignedAnswer:
    """Send a request that obstore would interpret."""
    return request(proxy.endpoint, bucket.server.admin, method, f"/{bucket.name}{path}", **options)


def seconds(act: Callable[[], object]) -> float:
    """Return how long a call took."""
    began = time.monotonic()
    act()
    return time.monotonic() - began


@pytest.mark.parametrize("name", ["seaweedfs", "radosgw"])
def test_without_rules_everything_passes_unchanged(name: str, request: pytest.FixtureRequest) -> None:
    bucket = Bucket.make(request.getfixturevalue(f"{name}_server"))
    proxy = FaultProxy(bucket.server.endpoint)
    store = bucket.store(endpoint=proxy.endpoint)
    put(store, "a key/ü", BLOB)
    put(store, "empty", b"")
    assert get(store, "a key/ü") == BLOB
    assert get(store, "empty") == b""
    assert bytes(obstore.get_range(store, "a key/ü", start=1000, length=3 * MIB)) == BLOB[1000 : 1000 + 3 * MIB]
    assert obstore.head(store, "a key/ü")["size"] == len(BLOB)
    for number in range(30):
        put(store, f"many/{number:04}")
    assert len([found for some in obstore.list(store) for found in some]) == 32
    obstore.put(store, "upload", BLOB * 2, use_multipart=True)
    assert bucket.get("upload") == BLOB * 2
    with pytest.raises(FileNotFoundError):
        get(store, "missing")
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "empty", b"", mode="create")
    obstore.delete(store, [f"many/{number:04}" for number in range(30)])
    assert bucket.keys() == ["a key/ü", "empty", "upload"]
    proxy.close()
    bucket.remove()


def test_requests_are_counted_by_verb(bucket: Bucket, fault_proxy: FaultProxy, store: S3Store) -> None:
    put(store, "a", b"12345")
    put(store, "b", b"123")
    get(store, "a")
    obstore.get_range(store, "a", start=1, length=2)
    obstore.head(store, "a")
    list(obstore.list(store))
    obstore.delete(store, ["a", "b"])
    ask(bucket, fault_proxy, "DELETE", "/a")
    ask(bucket, fault_proxy, "GET", "", query={"uploads": ""})
    assert fault_proxy.log.counts == {
        Verb.PUT: 2, Verb.GET: 1, Verb.RANGE: 1, Verb.HEAD: 1, Verb.LIST: 1, Verb.DELETE_MANY: 1, Verb.DELETE: 1,
        Verb.OTHER: 1,
    }  # fmt: skip
    first, *_ = fault_proxy.log.requests
    assert (first.method, first.path, first.status) == ("PUT", f"/{bucket.name}/a", 200)
    assert first.ended_s is not None
    assert first.ended_s >= first.began_s
    assert [entry.body_bytes for entry in fault_proxy.log.requests[:2]] == [5, 3]
    assert [entry.answer_bytes for entry in fault_proxy.log.requests[2:5]] == [5, 2, 0]
    fault_proxy.log.clear()
    assert fault_proxy.log.requests == []


def test_a_delay_delays_each_request_and_not_the_others(
    bucket: Bucket, fault_proxy: FaultProxy, store: S3Store
) -> None:
    bucket.put("a", b"")
    bucket.put("b", b"")
    fault_proxy.add(Delay(0.2), path="/a$")
    fault_proxy.add(Delay(0.1), verbs=READS)
    assert seconds(lambda: get(store, "a")) >= 0.3
    assert seconds(lambda: put(store, "a")) >= 0.2
    get(store, "b")
    began = [entry.began_s for entry in fault_proxy.log.requests]
    ended = [entry.ended_s or 0 for entry in fault_proxy.log.requests]
    assert ended[0] - began[0] >= 0.3
    assert ended[2] - began[2] >= 0.1


def test_the_log_says_how_many_requests_were_in_flight(bucket: Bucket, fault_proxy: FaultProxy, store: S3Store) -> None:
    fault_proxy.add(Silence())
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(get, store, "a") for _ in range(8)]
        wait_for(lambda: fault_proxy.log.in_flight == 8, "all requests are there")
        fault_proxy.refuse()
        assert all(isinstance(one.exception(), GenericError) for one in waiting)
    assert fault_proxy.log.in_flight == 0
    assert fault_proxy.log.most_in_flight == 8


@pytest.mark.parametrize("content", [b"", BLOB])
def test_a_request_has_ended_when_the_client_has_the_answer(
    bucket: Bucket, fault_proxy: FaultProxy, store: S3Store, content: bytes
) -> None:
    put(store, "a", content)
    assert fault_proxy.log.in_flight == 0
    for _ in range(10):
        get(store, "a")
        assert fault_proxy.log.in_flight == 0
        list(obstore.list(store))
        assert fault_proxy.log.in_flight == 0
    assert fault_proxy.log.most_in_flight == 1


@pytest.mark.slow
def test_a_bandwidth_is_shared_by_the_requests_that_the_rule_hits(
    bucket: Bucket, fault_proxy: FaultProxy, store: S3Store
) -> None:
    bucket.put("a", BLOB[:MIB])
    with fault_proxy.during(Bandwidth(2 * MIB)), ThreadPoolExecutor(2) as threads:
        assert seconds(lambda: list(threads.map(lambda _number: get(store, "a"), range(2)))) >= 0.9
        assert seconds(lambda: put(store, "b", BLOB[:MIB])) >= 0.45


@pytest.mark.parametrize(
    ("answer", "error", "code"),
    [
        (SLOW_DOWN, GenericError, "SlowDown"),
        (INTERNAL_ERROR, GenericError, "InternalError"),
        (TOO_MANY_REQUESTS, GenericError, "TooManyRequests"),
        (ACCESS_DENIED, PermissionDeniedError, "AccessDenied"),
        (REQUEST_TIME_TOO_SKEWED, PermissionDeniedError, "RequestTimeTooSkewed"),
        (NO_SUCH_BUCKET, FileNotFoundError, "NoSuchBucket"),
        (NO_SUCH_KEY, FileNotFoundError, "NoSuchKey"),
    ],
)
def test_requests_get_an_error_until_the_rule_is_removed(
    bucket: Bucket, fault_proxy: FaultProxy, store: S3Store, answer: Answer, error: type[Exception], code: str
) -> None:
    bucket.put("a", BLOB)
    with fault_proxy.during(answer):
        for _ in range(2):
            with pytest.raises(error, match=code):
                get(store, "a")
            with pytest.raises(error, match=code):
                put(store, "b", BLOB)
        assert ask(bucket, fault_proxy, "GET", "/a").status == answer.status
        assert ask(bucket, fault_proxy, "HEAD", "/a").status == answer.status
    assert get(store, "a") == BLOB
    assert bucket.keys() == ["a"], "the server did not execute refused requests"


def test_a_rule_hits_a_limited_number_of_requests(bucket: Bucket, fault_proxy: FaultProxy, store: S3Store) -> None:
    bucket.put("a", b"content")
    fault_proxy.add(Answer(503, "SlowDown", (("Retry-After", "7"),)), verbs=READS, times=2)
    assert ask(bucket, fault_proxy, "GET", "/a").headers["Retry-After"] == "7"
    with pytest.raises(GenericError):
        get(store, "a")
    assert get(store, "a") == b"content"


def test_an_error_document_within_a_success(bucket: Bucket, fault_proxy: FaultProxy, store: S3Store) -> None:
    bucket.put("a", b"content")
    fault_proxy.add(ERROR_WITHIN_SUCCESS)
    assert b"<Code>InternalError</Code>" in get(store, "a")
    assert obstore.head(store, "a")["size"] > 0
    fault_proxy.rules.clear()
    assert get(store, "a") == b"content"


def test_a_reset_without_forwarding(bucket: Bucket, fault_proxy: FaultProxy, store: S3Store) -> None:
    fault_proxy.add(Reset(forward=False), times=1)
    with pytest.raises(ConnectionResetError):
        ask(bucket, fault_proxy, "PUT", "/a", body=b"content")
    assert bucket.keys() == []
    put(store, "a")


def test_a_reset_before_the_answer_comes_after_the_server_has_executed_the_request(
    bucket: Bucket, fault_proxy: FaultProxy, store: S3Store
) -> None:
    fault_proxy.add(Reset(), verbs=frozenset({Verb.PUT}), times=1)
    with pytest.raises(ConnectionResetError):
        ask(bucket, fault_proxy, "PUT", "/a", body=b"content")
    assert bucket.objects() == {"a": b"content"}


def test_a_reset_in_the_body(bucket: Bucket, fault_proxy: FaultProxy, store: S3Store) -> None:
    bucket.put("a", BLOB)
    fault_proxy.add(Reset(body_bytes=100_000))
    with pytest.raises(ConnectionResetError):
        ask(bucket, fault_proxy, "GET", "/a")
    [entry] = fault_proxy.log.requests
    assert (entry.status, entry.answer_bytes) == (200, 100_000)


def test_a_body_cut_off_is_continued_by_the_client(bucket: Bucket, fault_proxy: FaultProxy) -> None:
    bucket.put("a", BLOB)
    retries = bucket.store(endpoint=fault_proxy.endpoint, retry_config={"max_retries": 3})
    fault_proxy.add(Truncation(body_bytes=MIB, honest=False), times=1)
    assert get(retries, "a") == BLOB
    assert fault_proxy.log.counts == {Verb.GET: 1, Verb.RANGE: 1}


def test_a_body_shorter_than_its_length(bucket: Bucket, fault_proxy: FaultProxy, store: S3Store) -> None:
    bucket.put("a", BLOB)
    fault_proxy.add(Truncation(body_bytes=MIB, honest=False))
    with pytest.raises(GenericError):
        get(store, "a")


def test_a_short_body_with_the_right_length(bucket: Bucket, fault_proxy: FaultProxy, store: S3Store) -> None:
    bucket.put("a", BLOB)
    bucket.put("short", b"1")
    fault_proxy.add(Truncation(body_bytes=1000, honest=True))
    assert get(store, "a") == BLOB[:1000]
    assert get(store, "short") == b"1"


@pytest.mark.parametrize("body_bytes", [None, 0, MIB])
def test_silence(bucket: Bucket, fault_proxy: FaultProxy, body_bytes: int | None) -> None:
    bucket.put("a", BLOB)
    hasty = bucket.store(
        endpoint=fault_proxy.endpoint, client_options={"allow_http": True, "timeout": timedelta(seconds=2)}
    )
    fault_proxy.add(Silence(body_bytes=body_bytes))
    with pytest.raises(BaseError):
        get(hasty, "a")
    wait_for(lambda: fault_proxy.log.in_flight == 0, "the proxy sees that the client has gone")
    assert {entry.status for entry in fault_proxy.log.requests} == {None if body_bytes is None else 200}
    fault_proxy.rules.clear()
    assert get(bucket.store(endpoint=fault_proxy.endpoint), "a") == BLOB


def test_refused_connections(bucket: Bucket, fault_proxy: FaultProxy, store: S3Store) -> None:
    bucket.put("a", b"content")
    get(store, "a")
    address = ("127.0.0.1", urlsplit(fault_proxy.endpoint).port)
    with fault_proxy.refusing():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        with pytest.raises(GenericError):
            get(store, "a")
    assert get(store, "a") == b"content"


def test_a_proxy_closes_while_requests_wait(bucket: Bucket) -> None:
    bucket.put("a", b"content")
    proxy = FaultProxy(bucket.server.endpoint)
    proxy.add(Silence(), path="/a")
    proxy.add(Delay(3600), path="/b")
    store = bucket.store(endpoint=proxy.endpoint)
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(get, store, key) for key in "ab"]
        wait_for(lambda: proxy.log.in_flight == 2, "both requests are there")
        proxy.close()
        assert all(isinstance(one.exception(), GenericError) for one in waiting)


def test_tls(bucket: Bucket, tmp_path: Path) -> None:
    proxy = FaultProxy(bucket.server.endpoint, self_signed_certificate(tmp_path / "certificate"))
    trusting = bucket.store(endpoint=proxy.endpoint, client_options={"allow_invalid_certificates": True})
    put(trusting, "a", BLOB)
    assert get(trusting, "a") == BLOB
    with pytest.raises(GenericError):
        get(bucket.store(endpoint=proxy.endpoint), "a")
    with proxy.during(Silence()), ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(get, trusting, "a")
        wait_for(lambda: proxy.log.in_flight == 1, "the request is there")
        proxy.close()
        assert isinstance(waiting.exception(), GenericError)


def test_a_proxy_in_a_separate_process(bucket: Bucket) -> None:
    bucket.put("a", BLOB)
    with SeparateProxy(bucket.server.endpoint) as proxy:
        store = bucket.store(endpoint=proxy.endpoint)
        proxy.set_rules(Rule(Delay(0.2), READS))
        assert seconds(lambda: get(store, "a")) >= 0.2
        assert proxy.take_traffic() == Traffic(
            counts=Counter({Verb.GET: 1}), most_in_flight=1, body_bytes=0, answer_bytes=len(BLOB)
        )
        proxy.set_rules(Rule(Bandwidth(100 * MIB)), Rule(SLOW_DOWN, times=1))
        with pytest.raises(GenericError):
            put(store, "b")
        put(store, "b")
        assert proxy.take_traffic().counts == {Verb.PUT: 2}
    with pytest.raises(GenericError):
        get(store, "a")
