"""A private object store that speaks S3, and its users."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import ClassVar

from tests.support.services.server import Server
from tests.support.signing import Credentials, accepted, request

# Bucket policies use the names of the users too.
ADMIN, READER, APPENDER = "admin", "reader", "appender"
USERS = {
    # The configurations of the reference repositories of backy2 contain these keys.
    ADMIN: Credentials(access_key="testkey", secret_key="testsecret"),
    READER: Credentials(access_key="readkey", secret_key="readsecret"),
    APPENDER: Credentials(access_key="appendkey", secret_key="appendsecret"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    """What a test needs to know about a running object store."""

    name: str      # "seaweedfs" or "radosgw"
    endpoint: str  # URL without a slash at the end
    admin: Credentials = USERS[ADMIN]        # may do everything
    reader: Credentials = USERS[READER]      # may get objects and list them
    appender: Credentials = USERS[APPENDER]  # may also put them, but not delete


class ObjectStoreServer(Server):
    """An object store that listens on `port`. Its objects are lost when it stops."""

    name: ClassVar[str]
    port: int

    @property
    def endpoint(self) -> str:
        """The URL of the server."""
        return f"http://127.0.0.1:{self.port}"

    def answers(self) -> bool:
        """Return whether buckets can be created and objects stored. The port opens before the other parts are ready."""
        try:
            return all(
                200 <= request(self.endpoint, USERS[ADMIN], method, path, body=body).status < 300
                for method, path, body in (
                    ("PUT", "/ready", b""), ("PUT", "/ready/1", b"1"), ("DELETE", "/ready/1", b""),
                    ("DELETE", "/ready", b""),
                )
            )  # fmt: skip
        except (OSError, http.client.HTTPException):
            return False


def make_bucket(server: S3Server, bucket: str) -> None:
    """Make a bucket in which each user has the rights described in S3Server."""
    accepted(server.endpoint, server.admin, "PUT", f"/{bucket}")
    objects = f"arn:aws:s3:::{bucket}/*"
    statements = [
        {"Action": ["s3:ListBucket"], "Resource": f"arn:aws:s3:::{bucket}", "Principal": principals(READER, APPENDER)},
        {"Action": ["s3:GetObject"], "Resource": objects, "Principal": principals(READER, APPENDER)},
        {"Action": ["s3:PutObject"], "Resource": objects, "Principal": principals(APPENDER)},
    ]
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **statement} for statement in statements]}
    accepted(server.endpoint, server.admin, "PUT", f"/{bucket}", query={"policy": ""}, body=json.dumps(policy).encode())


def principals(*users: str) -> dict[str, list[str]]:
    """Return users as a bucket policy names them."""
    # SeaweedFS expects the id of an account, radosgw the name of a tenant, which is empty here.
    return {"AWS": [f"arn:aws:iam::{account}:user/{user}" for account in ("000000000000", "") for user in users]}
