"""The URL of a database on a server: what is wrong with it, in words that quote nothing of it. Pure.

A password can hold anything. What follows an @ in it that is not escaped would be taken for the host, and be shown.
So such a URL is refused before anything else reads it.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from urllib.parse import parse_qsl, unquote_to_bytes

from backyfs.text import steers

# As SQLAlchemy divides it: a user may hold an @, a password may hold all but an @, both as they are or escaped.
_USER_AND_PLACE = re.compile(r"(?:(?P<user>[^:/]*)(?::(?P<password>[^@]*))?@)?(?P<place>.*)")
_PLACE = re.compile(
    r"(?:\[(?P<ipv6>[^\]]*)\]|[^\[\]:/?#\s]*)(?::(?P<port>[^/?]*))?(?:/(?P<name>[^?]*))?(?:\?(?P<query>.*))?"
)
_SECRET_PARAMETER = re.compile(r"pass|pwd|secret|token|key", re.IGNORECASE)
_HIGHEST_PORT = 65535


def mistake_in_url(url: str) -> str | None:
    """Return what is wrong with a URL, to be read after "the URL"; None if nothing is, or if it is one of SQLite."""
    scheme, _, rest = url.partition("://")
    if scheme.partition("+")[0] == "sqlite":
        return None
    if any(map(steers, url)):
        return "has a line break or another control character; write it on one line, and control characters as %0A"
    user = _USER_AND_PLACE.fullmatch(rest)
    assert user is not None, "it has no line breaks"
    if "@" in user["place"]:
        return "has an @ too many; write %40 for each @ in the password, and in whatever else follows the user"
    place = _PLACE.fullmatch(user["place"])
    if place is None or not _is_ipv6(place["ipv6"]):
        return "has a host that is not a name, an IPv4 address or an IPv6 address in [ ]"
    if not _is_port(place["port"]):
        return (
            f"has a port that is not a number from 1 to {_HIGHEST_PORT}; if that is a part of the password, write @ "
            "after the password, and the host"
        )
    return _mistake_in_escapes(url, user["user"], user["password"], place["name"])


def has_password(url: str) -> bool:
    """Return whether a URL of any kind holds a password."""
    user = _USER_AND_PLACE.fullmatch(url.partition("://")[2])
    if user is not None and user["password"]:
        return True
    return any(_SECRET_PARAMETER.search(name) for name, _ in parse_qsl(url.partition("?")[2]))


def _mistake_in_escapes(url: str, *parts: str | None) -> str | None:
    if b"\0" in unquote_to_bytes(url):
        return "has a NUL character, which no database takes; take the %00 out"
    try:
        for part in parts:
            unquote_to_bytes(part or "").decode()
    except UnicodeDecodeError:
        return "has a % followed by digits that are not UTF-8 text; write %25 for a plain %"
    return None


def _is_ipv6(text: str | None) -> bool:
    try:
        return text is None or IPv6Address(text) is not None
    except ValueError:
        return False


def _is_port(text: str | None) -> bool:
    return not text or (re.fullmatch(r"[0-9]{1,5}", text) is not None and 0 < int(text) <= _HIGHEST_PORT)
