"""From the errors of the client library to StorageErrors.

obstore (0.12) raises FileNotFoundError for missing objects and buckets, PermissionDeniedError, and GenericError for
everything else. What happened is only in the text: the status of the answer, the error document of S3, or the error of
the connection. Codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from backyfs.errors import (
    ObjectMissingError,
    StorageAwayError,
    StorageError,
    StorageFullError,
    StorageRefusedError,
    WrongStorageError,
)

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9.]{1,64})</Code>|\(code: ([A-Za-z0-9.]{1,64})\)")
_REGION = re.compile(r"<Region>([a-z0-9-]{1,32})</Region>|expecting &?#?\w*;?'?([a-z]{2}[a-z0-9-]{1,30})")

# Where the library asks for credentials if the configuration and the environment have none.
_METADATA_SERVICE = re.compile(r"performing \w+ http://\S*(?:/latest/api/token|/latest/meta-data/|//169\.254\.170\.)")

_BUCKET_MISSING = "NoSuchBucket"
_OBJECT_MISSING = "NoSuchKey"
_NOT_FOUND = 404
_CONFLICT = 409
_TRANSIENT_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_TRANSIENT_CODES = frozenset(
    {
        "InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling",
        "ThrottlingException", "TooManyRequests", "BandwidthLimitExceeded", "RequestLimitExceeded",
    }
)  # fmt: skip
_FULL_CODES = frozenset({"QuotaExceeded", "StorageFull", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"})
_INSUFFICIENT_STORAGE = 507
_RANGE_NOT_SATISFIABLE = 416
_REFUSED_STATUS = frozenset({401, 403})
_WRONG_REGION = frozenset(
    {"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException", "TemporaryRedirect"}
)
_WRONG_CLASS = frozenset({"InvalidStorageClass", "InvalidArgument"})  # AWS, radosgw

# What refuses a request, and what to do about it.
_REFUSALS = {
    "AccessDenied": ("access is denied", "give these credentials the permission, or configure others"),
    "AllAccessDisabled": ("access is disabled", None),
    "AccountProblem": ("there is a problem with the account", "ask the provider"),
    "ExpiredToken": ("the credentials have expired", "renew them"),
    "InvalidAccessKeyId": ("the access key is unknown", "correct `aws_access_key_id` of [DataBackend]"),
    "InvalidToken": ("the session token is invalid", "renew the credentials"),
    "SignatureDoesNotMatch": ("the secret key is wrong", "correct `aws_secret_access_key` of [DataBackend]"),
    "RequestTimeTooSkewed": ("the clock of this host is wrong by minutes", "set the clock"),
    "InvalidObjectState": (
        "the object is archived",
        "restore it from the archive to the standard storage class, then run the command again",
    ),
}
_OF_ONE_REQUEST = frozenset({"AccessDenied", "InvalidObjectState"})  # the others concern all requests
NO_TLS = "it does not speak TLS"
_CERTIFICATES = (
    ("UnknownIssuer", "its certificate is signed by an unknown authority", "name its certificate as `ca_file`"),
    ("Expired", "its certificate has expired", "renew it"),
    ("NotValidForName", "its certificate is that of another host", "correct the host in `endpoint_url`"),
    ("CaUsedAsEndEntity", "its certificate is that of an authority", "give the store one for its host"),
    ("InvalidContentType", NO_TLS, "write http:// in `endpoint_url`"),
    ("invalid peer certificate", "its certificate is not valid", "name the authority as `ca_file`"),
)
# The library received an answer with status 200 that is not the one to its request, such as an error document.
_STRANGE = (
    ("ETag Header missing", "an object without ETag"),
    ("MissingEtag", "an object without ETag"),
    ("NotPartial", "something else than a part of an object"),
    ("NoContentRange", "something else than a part of an object"),
    ("invalid DeleteObjects response", "no report of deletions"),
    ("invalid list response", "no list of objects"),
)
_CONNECTION = (
    ("dns error", "its name cannot be resolved"),
    ("ConnectionRefused", "connection refused"),
    ("ConnectionReset", "connection reset"),
    ("kind: Timeout", "timed out"),
    ("TimedOut", "timed out"),
    ("NetworkUnreachable", "network unreachable"),
    ("HostUnreachable", "host unreachable"),
    ("tcp connect error", "cannot connect"),
    ("IncompleteMessage", "connection closed"),
    ("UnexpectedEof", "connection closed"),
    ("body", "the answer was cut off"),
    ("error sending request", "cannot connect"),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of a request that failed."""

    status: int | None  # None: there was no answer
    code: str  # of the error document; empty: there was none
    text: str

    @classmethod
    def of(cls, error: BaseException) -> Answer:
        """Read the text of an error of the library."""
        text = str(error)
        status = _STATUS.search(text)
        code = _CODE.search(text)
        return cls(
            status=None if status is None else int(status[1]),
            code="" if code is None else code[1] or code[2],
            text=text,
        )


def is_beyond_end(error: BaseException) -> bool:
    """Return whether a range begins behind the end of its object."""
    answer = Answer.of(error)
    return answer.status == _RANGE_NOT_SATISFIABLE or answer.code == "InvalidRange"


def is_conflict(error: BaseException) -> bool:
    """Return whether an object was not stored because others store it at the same moment; it may not exist."""
    return Answer.of(error).status == _CONFLICT


def failure(error: BaseException, *, place: str, verb: str, key: str = "") -> StorageError:
    """Return the StorageError for an error of the library.

    `place` is the storage, `verb` the kind of request; `key`, if any, the object, which is missing only if it was read.
    """
    answer = Answer.of(error)
    subject = f"storage {place}:"
    if _METADATA_SERVICE.search(answer.text):
        return _of_metadata_service(answer, subject)
    if answer.status is None and not answer.code:
        strange = next((what for mark, what in _STRANGE if mark in answer.text), None)
        return _of_connection(answer.text, place) if strange is None else strange_answer(strange, place)
    if answer.code == _OBJECT_MISSING and verb == "get":
        return ObjectMissingError(key)
    if answer.code in _TRANSIENT_CODES or answer.status in _TRANSIENT_STATUS:
        return StorageAwayError(f"does not answer: {_name(answer)}", subject=subject)
    if answer.code == _OBJECT_MISSING or (answer.status == _NOT_FOUND and not answer.code):
        return strange_answer(_name(answer), place)
    return _of_answer(answer, subject, f"object {key}" if key else f"to {verb} objects")


def _of_metadata_service(answer: Answer, subject: str) -> StorageError:
    remedy = "set aws_access_key_id_file and aws_secret_access_key_file, or aws_profile, in [DataBackend]"
    if answer.status is None or answer.status in _TRANSIENT_STATUS:
        return StorageAwayError(
            "there are no credentials, and no metadata service of the host answers", subject=subject, remedy=remedy
        )
    return StorageRefusedError(
        "there are no credentials, and the metadata service of the host has none", subject=subject, remedy=remedy
    )


def strange_answer(what: str, place: str) -> StorageAwayError:
    """Return the error for an answer that no object store gives, as from a proxy whose store is being restarted."""
    return StorageAwayError(
        f"does not answer: what came is not the answer of an object store: {what}",
        subject=f"storage {place}:",
        remedy="if that does not pass, correct `endpoint_url` of [DataBackend]",
    )


def _of_answer(answer: Answer, subject: str, what: str) -> StorageError:
    if answer.code == _BUCKET_MISSING:
        return WrongStorageError(
            "the bucket does not exist",
            subject=subject,
            remedy="create it, or correct `bucket_name` or `endpoint_url` of [DataBackend]",
        )
    if answer.code in _FULL_CODES or answer.status == _INSUFFICIENT_STORAGE:
        return StorageFullError("there is no room", subject=subject, remedy="make room, or have the quota raised")
    if answer.code in _WRONG_REGION:
        return _of_region(answer.text, subject)
    if answer.code in _REFUSALS or answer.status in _REFUSED_STATUS:
        fact, remedy = _REFUSALS.get(answer.code, (f"access is denied: {_name(answer)}", None))
        is_general = answer.code in _REFUSALS and answer.code not in _OF_ONE_REQUEST
        return StorageRefusedError(fact if is_general else f"{fact} ({what})", subject=subject, remedy=remedy)
    if answer.code:
        remedy = "if `storage_class` of [DataBackend] is set, correct it" if answer.code in _WRONG_CLASS else None
        return StorageError(f"the request failed: {_name(answer)}", subject=subject, remedy=remedy)
    return StorageError(
        f"the answer is not that of an object store: {_name(answer)}",
        subject=subject,
        remedy="correct `endpoint_url` of [DataBackend]",
    )


def _name(answer: Answer) -> str:
    return " ".join(str(part) for part in (answer.status, answer.code) if part)


def _of_connection(text: str, place: str) -> StorageError:
    subject = f"storage {place}:"
    for mark, fact, remedy in _CERTIFICATES:
        if mark in text:
            return StorageError(
                f"cannot connect securely: {fact}", subject=subject, remedy=f"{remedy}; see [DataBackend]"
            )
    if "incorrectly configured region" in text:  # a redirect that does not say where to
        return _of_region(text, subject)
    if "panicked" in text:  # the library does so at a URL that is not one, such as http://bucket.127.0.0.1
        return invalid_address(place)
    fact = next((fact for mark, fact in _CONNECTION if mark in text), "")
    if not fact:
        return StorageError(f"the request failed: {text.partition(chr(10))[0][:200]}", subject=subject)
    return StorageAwayError(f"does not answer: {fact}", subject=subject)


def invalid_address(place: str) -> StorageError:
    """Return the error for an endpoint to which no request can be sent."""
    return StorageError(
        "the address of the bucket is invalid",
        subject=f"storage {place}:",
        remedy="correct `endpoint_url`, or set addressing_style: path in [DataBackend]",
    )


def _of_region(text: str, subject: str) -> StorageError:
    found = _REGION.search(text)
    region = "" if found is None else found[1] or found[2]
    return StorageError(
        f"the bucket is in {f'region {region}' if region else 'another region'}",
        subject=subject,
        remedy=f"set `region_name` of [DataBackend]{f' to {region}' if region else ''}",
    )
