"""Buckets of the object stores that the tests start."""

from __future__ import annotations

import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import obstore
from obstore.store import S3Store

from backyfs.config import ObjectStoreConfig
from tests.support.services.objectstore import make_bucket
from tests.support.signing import REGION, accepted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Self

    from tests.support.services.objectstore import S3Server
    from tests.support.signing import Credentials

_PATIENCE = timedelta(seconds=60)
_THREADS = 8  # to store many objects


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket that tests access without the program."""

    server: S3Server
    name: str

    @classmethod
    def make(cls, server: S3Server, prefix: str = "test") -> Self:
        """Make an empty bucket with a unique name."""
        bucket = cls(server, f"{prefix}-{secrets.token_hex(8)}")
        make_bucket(server, bucket.name)
        return bucket

    def store(self, *, endpoint: str | None = None, user: Credentials | None = None, **options: Any) -> S3Store:
        """Return an obstore client, by default for the administrator and directly to the server, without retries."""
        user = user or self.server.admin
        usual: dict[str, Any] = {
            "client_options": {"allow_http": True, "timeout": _PATIENCE},
            "retry_config": {"max_retries": 0},
        }
        return S3Store(
            self.name,
            endpoint=endpoint or self.server.endpoint,
            access_key_id=user.access_key,
            secret_access_key=user.secret_key,
            region=REGION,
            virtual_hosted_style_request=False,
            **(usual | options),
        )

    def config(
        self, *, endpoint: str | None = None, user: Credentials | None = None, **options: Any
    ) -> ObjectStoreConfig:
        """Return the configuration of a storage in this bucket, by default for the administrator."""
        user = user or self.server.admin
        return ObjectStoreConfig(
            kind="s3",
            bucket_name=self.name,
            endpoint_url=endpoint or self.server.endpoint,
            use_ssl=False,
            aws_access_key_id=user.access_key,
            aws_secret_access_key=user.secret_key,
            **options,
        )

    def keys(self) -> list[str]:
        """Return the keys of all objects, sorted."""
        return sorted(found["path"] for some in obstore.list(self.store()) for found in some)

    def put(self, key: str, body: bytes) -> None:
        """Store an object."""
        self.fill({key: body})

    def fill(self, objects: Mapping[str, bytes]) -> None:
        """Store objects by key."""
        store = self.store()
        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(lambda key: obstore.put(store, key, objects[key], use_multipart=False), objects))

    def get(self, key: str) -> bytes:
        """Return an object."""
        return bytes(obstore.get(self.store(), key).bytes())

    def delete(self, *keys: str) -> None:
        """Delete objects."""
        obstore.delete(self.store(), list(keys))

    def objects(self) -> Mapping[str, bytes]:
        """Return the content of all objects by key."""
        store = self.store()
        return {key: bytes(obstore.get(store, key).bytes()) for key in self.keys()}

    def uploads(self) -> list[tuple[str, str]]:
        """Return the key and the id of each unfinished upload."""
        found = ET.fromstring(self._ask("GET", f"/{self.name}", {"uploads": ""}))
        return [
            (upload.findtext("{*}Key", ""), upload.findtext("{*}UploadId", ""))
            for upload in found.iterfind("{*}Upload")
        ]

    def take_over(self, config_file: Path, *, endpoint: str | None = None, **settings: object) -> None:
        """Copy the storage of a repository from its directory to this bucket, and change its configuration."""
        data = config_file.with_name("data")
        for path in data.rglob("*"):
            if path.is_file():
                self.put(path.stem if path.suffix == ".blob" else str(path.relative_to(data)), path.read_bytes())
        place = self.config(endpoint=endpoint)
        lines = {
            "type": "s3",
            "bucket_name": place.bucket_name,
            "endpoint_url": place.endpoint_url,
            "aws_access_key_id": place.aws_access_key_id,
            "aws_secret_access_key": place.aws_secret_access_key,
            **settings,
        }
        section = "\n".join(f"{key}: {value}" for key, value in lines.items())
        text = config_file.read_text()
        config_file.write_text(re.sub(r"(?ms)^type: file$.*?^path: [^\n]*", lambda _: section, text))

    def remove(self) -> None:
        """Remove the bucket and everything in it."""
        for key, upload in self.uploads():
            self._ask("DELETE", f"/{self.name}/{key}", {"uploadId": upload})
        self.delete(*self.keys())
        self._ask("DELETE", f"/{self.name}", {})

    def _ask(self, method: str, path: str, query: dict[str, str]) -> bytes:
        return accepted(self.server.endpoint, self.server.admin, method, path, query=query).body
