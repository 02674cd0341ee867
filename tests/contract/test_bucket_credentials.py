"""Credentials that the library finds at the metadata service of the host."""

from __future__ import annotations

import json
import threading
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from backyfs.errors import StorageError
from backyfs.model import BlobUid
from backyfs.storage.bucket import open_bucket
from tests.support.buckets import Bucket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backyfs.config import ObjectStoreConfig
    from tests.support.services.objectstore import S3Server
    from tests.support.signing import Credentials

A = BlobUid("a1b2c3d4e5f60718293a4b5c6d7e8f90")


class Handler(BaseHTTPRequestHandler):
    """The metadata service of an instance (IMDSv2)."""

    credentials: Credentials
    asked: list[str]

    def do_PUT(self) -> None:
        self._answer("token of the service")

    def do_GET(self) -> None:
        if self.path.endswith("/security-credentials/"):
            self._answer("a-role")
            return
        self._answer(
            json.dumps(
                {
                    "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": datetime.now(UTC).isoformat(), "Token": "",
                    "AccessKeyId": self.credentials.access_key, "SecretAccessKey": self.credentials.secret_key,
                    "Expiration": (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
                }
            )
        )  # fmt: skip

    def _answer(self, text: str) -> None:
        self.asked.append(f"{self.command} {self.path}")
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def service(credentials: Credentials) -> Iterator[tuple[str, list[str]]]:
    """Run the service; yield its URL and what it is asked for."""
    asked: list[str] = []
    handler = type("Own", (Handler,), {"credentials": credentials, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def without_keys(
    seaweedfs_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[ObjectStoreConfig]:
    """Return the configuration of a bucket without any credentials."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    bucket = Bucket.make(seaweedfs_server)
    yield replace(bucket.config(retry_time=0), aws_access_key_id=None, aws_secret_access_key=None)
    bucket.remove()


def test_credentials_come_from_the_metadata_service_of_the_host(
    without_keys: ObjectStoreConfig, seaweedfs_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with service(seaweedfs_server.admin) as (url, asked):
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", url)
        with closing(open_bucket(without_keys, lambda: False)) as storage:
            storage.put(A, [b"x"])
            assert storage.get(A) == b"x"
            storage.delete([A])
    assert asked[0].startswith("PUT /latest/api/token")
    assert len(asked) == 3, "the credentials are kept until they expire"


def test_missing_credentials_are_an_error_with_a_remedy(
    without_keys: ObjectStoreConfig, seaweedfs_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with service(seaweedfs_server.admin) as (url, _):
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", url)  # nothing listens there any more
    with closing(open_bucket(without_keys, lambda: False)) as storage, pytest.raises(StorageError) as caught:
        storage.put(A, [b"x"])
    assert "metadata service" in str(caught.value)
    assert "set aws_access_key_id_file and aws_secret_access_key_file, or aws_profile" in str(caught.value)
