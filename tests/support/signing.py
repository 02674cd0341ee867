"""One signed request to an S3 server, for what obstore cannot do: buckets, their policies, and queries to a server.

The signature is version 4, as https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html defines it.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

REGION = "us-east-1"
_PATIENCE_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A user of an S3 server."""

    access_key: str
    secret_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer of a server."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class RefusedRequestError(Exception):
    """A server answered a request with an error."""


def request(
    endpoint: str,
    credentials: Credentials,
    method: str,
    path: str,
    *,
    query: Mapping[str, str] | None = None,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send one request on a separate connection; return the answer, whatever its status.

    `path` and `query` are given without percent-encoding. Errors of the connection are OSError or HTTPException.
    """
    host = urlsplit(endpoint).netloc
    encoded_path = quote(path, safe="/~")
    encoded_query = "&".join(
        f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in sorted((query or {}).items())
    )
    content = {"Content-MD5": b64encode(hashlib.md5(body).digest()).decode()} if body else {}
    signed = _sign(credentials, method, encoded_path, encoded_query, body, {"Host": host, **content, **(headers or {})})
    connection = http.client.HTTPConnection(host, timeout=_PATIENCE_S)
    try:
        connection.request(method, f"{encoded_path}?{encoded_query}" if query else encoded_path, body or None, signed)
        response = connection.getresponse()
        return Answer(status=response.status, headers=dict(response.getheaders()), body=response.read())
    finally:
        connection.close()


def accepted(endpoint: str, credentials: Credentials, method: str, path: str, **options: object) -> Answer:
    """Do the same, and raise RefusedRequestError if the status is not 2xx."""
    answer = request(endpoint, credentials, method, path, **options)  # type: ignore[arg-type]
    if not 200 <= answer.status < 300:
        raise RefusedRequestError(f"{method} {path}: {answer.status} {answer.body.decode(errors='replace')}")
    return answer


def _sign(
    credentials: Credentials, method: str, path: str, query: str, body: bytes, headers: dict[str, str]
) -> dict[str, str]:
    """Return the headers, with those of the signature."""
    now = datetime.now(UTC)
    digest = hashlib.sha256(body).hexdigest()
    headers = {**headers, "x-amz-date": now.strftime("%Y%m%dT%H%M%SZ"), "x-amz-content-sha256": digest}
    lines = sorted((name.lower(), value) for name, value in headers.items())
    names = ";".join(name for name, _ in lines)
    canonical = "\n".join([method, path, query, *(f"{name}:{value}" for name, value in lines), "", names, digest])
    scope = f"{now:%Y%m%d}/{REGION}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", headers["x-amz-date"], scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{credentials.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.new(key, text.encode(), "sha256").hexdigest()
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return {**headers, "Authorization": authorization}
