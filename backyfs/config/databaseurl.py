"""Find mistakes in the URL of a database on a server, and describe them without quoting the URL. Pure.

A password can contain anything. The part after an unescaped @ in it would be taken for the host and shown in messages.
So such a URL is refused before anything else parses it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from urllib.parse import parse_qsl, unquote_to_bytes

from backyfs.text import is_control

# Split as by SQLAlchemy: a user may contain an @, a password anything but an @, both escaped or not.
_USER_AND_PLACE = re.compile(r"(?:(?P<user>[^:/]*)(?::(?P<password>[^@]*))?@)?(?P<place>.*)")
_PLACE = re.compile(
    r"(?:\[(?P<ipv6>[^\]]*)\]|[^\[\]:/?#\s]*)(?::(?P<port>[^/?]*))?(?:/(?P<name>[^?]*))?(?:\?(?P<query>.*))?"
)
_SECRET_PARAMETER = re.compile(r"pass|pwd|secret|token|key", re.IGNORECASE)
_HIGHEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class UrlMistake:
    """What is wrong with a URL, to be read after "the URL", and what to do."""

    fact: str
    remedy: str


def mistake_in_url(url: str) -> UrlMistake | None:
    """Return the mistake in a URL; None if there is none, or if the URL is for SQLite."""
    scheme, _, rest = url.partition("://")
    if scheme.partition("+")[0] == "sqlite":
        return None
    if any(map(is_control, url)):
        return UrlMistake(
            "has a line break or another control character", "write it on one line, and control characters as %0A"
        )
    user = _USER_AND_PLACE.fullmatch(rest)
    assert user is not None, "it has no line breaks"
    if "@" in user["place"]:
        return UrlMistake("has too many @ characters", "write %40 for each @ in the password and after it")
    place = _PLACE.fullmatch(user["place"])
    if place is None or not _is_ipv6(place["ipv6"]):
        return UrlMistake(
            "has an invalid host", "write a name, an IPv4 address or an IPv6 address in [ ] between the @ and the /"
        )
    if not is_port(place["port"]):
        return UrlMistake(
            f"has a port that is not a number from 1 to {_HIGHEST_PORT}",
            "if that is part of the password, write @ and the host after the password",
        )
    return _mistake_in_escapes(url, user["user"], user["password"], place["name"])


def has_password(url: str) -> bool:
    """Return whether a URL of any kind contains a password."""
    user = _USER_AND_PLACE.fullmatch(url.partition("://")[2])
    if user is not None and user["password"]:
        return True
    return any(_SECRET_PARAMETER.search(name) for name, _ in parse_qsl(url.partition("?")[2]))


def _mistake_in_escapes(url: str, *parts: str | None) -> UrlMistake | None:
    if b"\0" in unquote_to_bytes(url):
        return UrlMistake("has a NUL character, which no database accepts", "remove the %00")
    try:
        for part in parts:
            unquote_to_bytes(part or "").decode()
    except UnicodeDecodeError:
        return UrlMistake("has a % followed by digits that are not UTF-8 text", "write %25 for a plain %")
    return None


def _is_ipv6(text: str | None) -> bool:
    try:
        return text is None or IPv6Address(text) is not None
    except ValueError:
        return False


def is_port(text: str | None) -> bool:
    """Return whether the part of a URL after the colon behind its host can be a port; it may be missing."""
    return not text or (re.fullmatch(r"[0-9]{1,5}", text) is not None and 0 < int(text) <= _HIGHEST_PORT)
