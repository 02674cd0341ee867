"""List a bucket that holds objects with names that the library refuses, such as `a//b` or names with a tab.

The library fails at a page with such a name, although it is none of ours. This asks for the page with a request of our
own: ListObjectsV2 (https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html), signed with version 4
(https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html).
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit
from xml.etree import ElementTree as ET

from backyfs.errors import StorageAwayError

if TYPE_CHECKING:
    from collections.abc import Callable

    from obstore.store import S3Credential

_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
_MAX_ANSWER_BYTES = 16 << 20
_NAMESPACE = "{*}"


class ListingError(Exception):
    """The store answered with an error. The text has the status and the error document, as errors of the library."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for the error that it is: the signature is not for another host."""

    def redirect_request(self, *_: object) -> None:
        """Return no other request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketLister:
    """Lists one bucket. Any thread may use it."""

    place: str    # for messages
    url: str      # of the bucket
    region: str
    prefix: str   # of all keys, with a slash at the end, or empty
    credentials: Callable[[], S3Credential]
    timeout_s: float
    ca_file: str | None = None
    proxy_url: str | None = None

    def page(self, directory: str, after: str | None) -> list[tuple[str, int, float]]:
        """Return path, size in bytes and time of storing of objects behind `after`, in order; none: there are no more.

        Paths are relative to the prefix, and begin with `directory`.

        Raises:
            ListingError: the store refused.
            StorageAwayError: it does not answer.
        """
        query = {
            "encoding-type": "url",  # XML cannot contain control characters
            "list-type": "2",
            "prefix": self.prefix + directory,
        }
        if after is not None:
            query["start-after"] = self.prefix + after
        return [self._entry(found) for found in _parsed(self._get(query)).iterfind(f"{_NAMESPACE}Contents")]

    def _entry(self, found: ET.Element) -> tuple[str, int, float]:
        key = unquote(found.findtext(f"{_NAMESPACE}Key", ""))
        stored_at = datetime.fromisoformat(found.findtext(f"{_NAMESPACE}LastModified", "1970-01-01T00:00:00Z"))
        size = int(found.findtext(f"{_NAMESPACE}Size", "0"))
        return key.removeprefix(self.prefix), size, stored_at.timestamp()

    def _get(self, query: dict[str, str]) -> bytes:
        canonical = "&".join(f"{quote(name, safe='')}={quote(text, safe='')}" for name, text in sorted(query.items()))
        request = urllib.request.Request(  # noqa: S310 - the configuration allows http and https
            f"{self.url}?{canonical}", headers=self._signed(canonical, datetime.now(UTC))
        )
        try:
            with self._opener().open(request, timeout=self.timeout_s) as answer:
                content: bytes = answer.read(_MAX_ANSWER_BYTES)
        except urllib.error.HTTPError as error:
            document = error.read(_MAX_ANSWER_BYTES).decode(errors="replace")
            raise ListingError(f"status code: {error.code} {document}") from error
        except (OSError, http.client.HTTPException) as error:
            raise StorageAwayError(f"does not answer: {error}", subject=f"storage {self.place}:") from error
        return content

    def _opener(self) -> urllib.request.OpenerDirector:
        proxies = None if self.proxy_url is None else {"http": self.proxy_url, "https": self.proxy_url}
        trusted = ssl.create_default_context()
        if self.ca_file is not None:
            trusted.load_verify_locations(self.ca_file)
        return urllib.request.build_opener(
            _NoRedirect, urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=trusted)
        )

    def _signed(self, query: str, now: datetime) -> dict[str, str]:
        """Return the headers of a GET request with this query."""
        credentials = self.credentials()
        parts = urlsplit(self.url)
        headers = {
            "host": parts.netloc,
            "x-amz-content-sha256": _EMPTY_SHA256,
            "x-amz-date": now.strftime("%Y%m%dT%H%M%SZ"),
        }
        if token := credentials.get("token"):
            headers["x-amz-security-token"] = token
        names = ";".join(sorted(headers))
        lines = [f"{name}:{headers[name]}\n" for name in sorted(headers)]
        canonical = "\n".join(["GET", parts.path or "/", query, "".join(lines), names, _EMPTY_SHA256])
        scope = f"{now:%Y%m%d}/{self.region}/s3/aws4_request"
        text = "\n".join(
            ["AWS4-HMAC-SHA256", headers["x-amz-date"], scope, hashlib.sha256(canonical.encode()).hexdigest()]
        )
        key = f"AWS4{credentials['secret_access_key']}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        identity = f"{credentials['access_key_id']}/{scope}"
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={identity}, SignedHeaders={names}, Signature={signature}"
        )
        return headers


def _parsed(document: bytes) -> ET.Element:
    """Return the list of objects of an answer with status 200, which can also be an error document or a web page."""
    try:
        root = ET.fromstring(document)  # noqa: S314 - of the store that is trusted with the blobs; entities are limited
    except ET.ParseError as error:
        raise ListingError(f"invalid list response: {error}") from error
    if root.tag.rpartition("}")[2] != "ListBucketResult":
        code = root.findtext("Code")
        raise ListingError("invalid list response" if code is None else f"status code: 200 <Code>{code}</Code>")
    return root
