"""The object stores started by tests behave as the tests expect."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
import pytest
from obstore.exceptions import PermissionDeniedError

from tests.support.buckets import Bucket
from tests.support.repositories import wait_for
from tests.support.signing import Credentials, request

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.services.objectstore import S3Server

_STARTS = """
import sys
from pathlib import Path
from tests.support.services.{kind} import {name}
from tests.support.services.sharing import shared
with shared({name}, Path(sys.argv[1])) as server:
    print(server.endpoint, flush=True)
    sys.stdin.read()
"""
_NAMES = {"seaweedfs": "SeaweedfsServer", "radosgw": "RadosgwServer"}


def test_an_object_is_read_as_stored(bucket: Bucket) -> None:
    bucket.put("some/key", b"content")
    assert bucket.keys() == ["some/key"]
    assert bucket.get("some/key") == b"content"
    bucket.delete("some/key")
    assert bucket.keys() == []


def test_more_buckets_than_a_volume_server_has_volumes_by_default(s3_server: S3Server) -> None:
    buckets = [Bucket.make(s3_server) for _ in range(12)]
    for bucket in buckets:
        bucket.put("key", bucket.name.encode())
    assert [bucket.get("key") for bucket in buckets] == [bucket.name.encode() for bucket in buckets]
    for bucket in buckets:
        bucket.remove()


def test_a_bucket_is_removed_with_its_unfinished_uploads(s3_server: S3Server) -> None:
    bucket = Bucket.make(s3_server)
    request(s3_server.endpoint, s3_server.admin, "POST", f"/{bucket.name}/a/key", query={"uploads": ""})
    assert [key for key, _ in bucket.uploads()] == ["a/key"]
    bucket.put("b", b"")
    bucket.remove()
    assert request(s3_server.endpoint, s3_server.admin, "HEAD", f"/{bucket.name}").status == 404


def test_a_reader_can_only_read_and_list(bucket: Bucket) -> None:
    bucket.put("key", b"content")
    reader = bucket.store(user=bucket.server.reader)
    assert bytes(obstore.get(reader, "key").bytes()) == b"content"
    assert [found["path"] for some in obstore.list(reader) for found in some] == ["key"]
    with pytest.raises(PermissionDeniedError):
        obstore.put(reader, "key", b"other")
    with pytest.raises(Exception, match="AccessDenied"):
        obstore.delete(reader, "key")
    assert bucket.objects() == {"key": b"content"}


def test_an_appender_cannot_delete(bucket: Bucket) -> None:
    appender = bucket.store(user=bucket.server.appender)
    obstore.put(appender, "key", b"content")
    assert bytes(obstore.get(appender, "key").bytes()) == b"content"
    assert [found["path"] for some in obstore.list(appender) for found in some] == ["key"]
    with pytest.raises(Exception, match="AccessDenied"):
        obstore.delete(appender, "key")
    assert bucket.keys() == ["key"]


@pytest.mark.parametrize(("access_key", "secret_key"), [("testkey", "wrong"), ("nobody", "testsecret")])
def test_wrong_credentials_are_refused(bucket: Bucket, access_key: str, secret_key: str) -> None:
    user = Credentials(access_key=access_key, secret_key=secret_key)
    with pytest.raises(PermissionDeniedError):
        obstore.put(bucket.store(user=user), "key", b"content")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["seaweedfs", "radosgw"])
def test_a_server_dies_with_the_process_that_started_it_and_another_takes_its_place(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(f"{kind}_server")  # skips the test if it is not installed
    with _starting(kind, tmp_path) as first:
        endpoint = _line(first)
        with _starting(kind, tmp_path) as second:
            assert _line(second) == endpoint
            os.kill(first.pid, signal.SIGKILL)
            wait_for(lambda: not _listens(endpoint), "the server ends")
            with _starting(kind, tmp_path) as third:
                assert _line(third) not in {"", endpoint}
                _finish(second)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["seaweedfs", "radosgw"])
def test_a_server_runs_until_the_last_process_has_finished(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(f"{kind}_server")  # skips the test if it is not installed
    with _starting(kind, tmp_path) as first:
        endpoint = _line(first)
        with _starting(kind, tmp_path) as second:
            assert _line(second) == endpoint
            _finish(first)
            assert _listens(endpoint)
            assert first.poll() is None
        assert first.wait(60) == 0
    assert not _listens(endpoint)


def _starting(kind: str, directory: Path) -> subprocess.Popen[str]:
    program = _STARTS.format(kind=kind, name=_NAMES[kind])
    return subprocess.Popen(
        [sys.executable, "-c", program, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _finish(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()


def _listens(endpoint: str) -> bool:
    connection = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=10)
    try:
        connection.connect()
    except OSError:
        return False
    finally:
        connection.close()
    return True
