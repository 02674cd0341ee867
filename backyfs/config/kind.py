"""Kinds of values: how the text of a key becomes its value, and what to say when it does not. Pure.

A kind raises Refused and knows neither key nor place; the loader adds both.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from backyfs.config.databaseurl import mistake_in_url
from backyfs.config.places import path_below
from backyfs.model import Deduplication

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BLOCK_SIZE = 64 << 20
MAX_COMPRESSION_LEVEL = 19  # those beyond gain nothing with blocks of this size
_SECTOR_BYTES = 512
_MAX_NUMBER = 2**63 - 1  # what a database column holds
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_MAX_DURATION_S = 36500 * 86400  # a hundred years: dates stay dates
_BOOLEANS = {
    "1": True, "0": False, "true": True, "false": False, "yes": True, "no": False, "on": True, "off": False,
}
_ECHOED_CHARACTERS = 80


class Refused(Exception):  # noqa: N818 - an answer of a kind; the loader makes a ConfigError of it
    """The text is no value of the kind. `fact` goes on from the key's name; empty: the usual sentence."""

    def __init__(self, fact: str = "") -> None:
        self.fact = fact
        super().__init__(fact)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the meaning of a path depends on."""

    directory: str  # of the file in which the key stands; absolute
    home: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of value."""

    allowed: str  # ends the sentence "key is 'text'; allowed: ..."
    parse: Callable[[str, Surroundings], object]
    secret: bool = False      # the text is never shown
    many_lines: bool = False  # the text may go over several lines
    optional: bool = False    # an empty text is the same as no key

    def value(self, text: str, surroundings: Surroundings) -> object:
        """Return the value that the text stands for.

        Raises:
            Refused: it stands for none.
        """
        if "\n" in text and not self.many_lines:
            raise Refused("goes over several lines; an indented line continues the key above it")
        try:
            return self.parse(text, surroundings)
        except Refused as refused:
            raise Refused(refused.fact or self._usual_sentence(text)) from None

    def _usual_sentence(self, text: str) -> str:
        if self.secret:
            return f"has {len(text)} characters; allowed: {self.allowed}"
        shown = text if len(text) <= _ECHOED_CHARACTERS else text[:_ECHOED_CHARACTERS] + "..."
        remark = "; a comment needs a line of its own" if re.search(r"\s[#;]", text) else ""
        return f"is {shown!r}; allowed: {self.allowed}{remark}"


def _number(text: str, _: Surroundings, *, least: int = 0) -> int:
    # The length first: int() refuses thousands of digits with words of its own.
    if not re.fullmatch("[0-9]{1,19}", text) or not least <= int(text) <= _MAX_NUMBER:
        raise Refused
    return int(text)


def _count(text: str, surroundings: Surroundings) -> int:
    return _number(text, surroundings, least=1)


def _compression_level(text: str, surroundings: Surroundings) -> int:
    level = _count(text, surroundings)
    return level if level <= MAX_COMPRESSION_LEVEL else _refuse()


def _block_size(text: str, surroundings: Surroundings) -> int:
    size = _number(text, surroundings)
    if size % _SECTOR_BYTES or not _SECTOR_BYTES <= size <= MAX_BLOCK_SIZE:
        raise Refused
    return size


def _duration(text: str, _: Surroundings) -> int:
    found = re.fullmatch("([0-9]{1,10})([smhdw])", text)
    seconds = int(found[1]) * _SECONDS[found[2]] if found else -1
    if not 0 <= seconds <= _MAX_DURATION_S:
        raise Refused
    return seconds


def _interval(text: str, surroundings: Surroundings) -> int:
    return _duration(text, surroundings) or _refuse()


def _boolean(text: str, _: Surroundings) -> bool:
    if text.lower() not in _BOOLEANS:
        raise Refused
    return _BOOLEANS[text.lower()]


def _deduplication(text: str, surroundings: Surroundings) -> Deduplication:
    if text.lower() == Deduplication.SAME_VERSION.value:
        return Deduplication.SAME_VERSION
    return Deduplication.ON if _boolean(text, surroundings) else Deduplication.OFF


def _hash_function(text: str, _: Surroundings) -> str:
    if text == "blake3":
        return text
    if text not in hashlib.algorithms_available:
        raise Refused
    try:
        made = hashlib.new(text, usedforsecurity=False)
    except ValueError:  # OpenSSL lists it and does not do it any more
        raise Refused from None
    if not made.digest_size:  # shake: the digest is as long as one asks for
        raise Refused
    return text


def _hex_key(text: str, _: Surroundings) -> str:
    return text if re.fullmatch("[0-9a-fA-F]{64}", text) else _refuse()


def _text(text: str, _: Surroundings) -> str:
    return text or _refuse()


def _words(text: str, _: Surroundings) -> tuple[str, ...]:
    words = tuple(text.split())
    if not all(re.fullmatch("RBD_FEATURE_[A-Z0-9_]+", word) for word in words):
        raise Refused
    return words


def _path(text: str, surroundings: Surroundings) -> str:
    if not text.startswith("~"):
        return path_below(surroundings.directory, _text(text, surroundings))
    name, _, rest = text.partition("/")
    if name != "~":
        raise Refused(f"begins with {name}/, and only ~/ is known; write the whole path, or ./{name}")
    if surroundings.home is None:
        raise Refused("begins with ~, and the variable HOME names no directory; write the whole path")
    return path_below(surroundings.home, rest.lstrip("/"))


def _database_url(text: str, surroundings: Surroundings) -> str:
    """Make the path of an SQLite URL absolute; pass other URLs on. None is shown: it can hold a password."""
    if not re.match(r"[a-z][a-z0-9_+]*://", text):
        raise Refused(f"does not name a database; allowed: {DATABASE_URL.allowed}")
    scheme, _, rest = text.partition("://")
    if scheme.partition("+")[0] != "sqlite":
        return text if (mistake := mistake_in_url(text)) is None else _refuse(mistake)
    location, question_mark, query = rest.partition("?")
    if location in ("", "/", "/:memory:"):
        raise Refused("names a database in memory, which is gone when the command ends; name a file: sqlite:////path")
    if not location.startswith("/"):
        raise Refused("has a host, and SQLite knows none; write sqlite:///relative or sqlite:////path")
    if location.startswith("/file:"):
        raise Refused("has a URL within the URL; write the path, as in sqlite:////path")
    written = location[1:]
    path = _path(written, surroundings)
    if "?" in path or path.count("%") > written.count("%"):  # both mean something else in a URL
        raise Refused("begins at a directory that has ? or % in its name; write sqlite:////another/path")
    return f"{scheme}:///{path}{question_mark}{query}"


def _endpoint_url(text: str, _: Surroundings) -> str:
    scheme, _separator, rest = text.partition("://")
    if "@" in text:
        raise Refused("holds a user or password; write them as aws_access_key_id and aws_secret_access_key")
    if scheme not in ("http", "https") or not rest:
        raise Refused
    return text


def _host(text: str, _: Surroundings) -> str:
    if "@" in text:
        raise Refused("holds a user or password; write them as aws_access_key_id and aws_secret_access_key")
    return text if re.fullmatch(r"[^\s/]+", text) else _refuse()


def _choice(*names: str, prefix: str = "", synonyms: dict[str, str] | None = None) -> Kind:
    """Make a kind of a few names; with a prefix, each may be written as a module of backy2 or backyfs."""
    meaning = {name: name for name in names} | (synonyms or {})
    starts = ("", f"backy2.{prefix}", f"backyfs.{prefix}") if prefix else ("",)
    spellings = {start + name: meant for name, meant in meaning.items() for start in starts}

    def parse(text: str, _: Surroundings) -> str:
        return spellings.get(text) or _refuse()

    also = f"; also as backy2.{prefix}NAME or backyfs.{prefix}NAME" if prefix else ""
    return Kind(allowed=", ".join(meaning) + also, parse=parse, optional=not prefix)


def _refuse(fact: str = "") -> NoReturn:
    raise Refused(fact)


NUMBER = Kind(allowed="a whole number, 0 or more", parse=_number)
COUNT = Kind(allowed="a whole number, 1 or more", parse=_count)
COMPRESSION_LEVEL = Kind(allowed=f"a whole number from 1 to {MAX_COMPRESSION_LEVEL}", parse=_compression_level)
BLOCK_SIZE = Kind(
    allowed=f"a number of bytes that is a multiple of 512, from 512 to {MAX_BLOCK_SIZE}",
    parse=_block_size,
)
DURATION = Kind(allowed="a number and a unit (s, m, h, d, w), as in 12h, up to 36500d", parse=_duration)
INTERVAL = Kind(allowed="a number, 1 or more, and a unit (s, m, h, d, w), as in 1d", parse=_interval)
OPTIONAL_BOOLEAN = Kind(allowed=", ".join(_BOOLEANS), parse=_boolean, optional=True)
DEDUPLICATION = Kind(allowed=f"{OPTIONAL_BOOLEAN.allowed}, {Deduplication.SAME_VERSION.value}", parse=_deduplication)
HASH_FUNCTION = Kind(
    allowed="blake3, or a name in Python's hashlib with digests of one length, such as sha512",
    parse=_hash_function,
)
HEX_KEY = Kind(allowed="64 hex digits", parse=_hex_key, secret=True)
TEXT = Kind(allowed="any text", parse=_text)
OPTIONAL_TEXT = Kind(allowed="any text", parse=_text, optional=True)
SECRET_TEXT = Kind(allowed="any text", parse=_text, optional=True, secret=True)
FEATURES = Kind(allowed="names such as RBD_FEATURE_LAYERING", parse=_words, many_lines=True)
PATH = Kind(allowed="a path", parse=_path)
OPTIONAL_PATH = Kind(allowed="a path", parse=_path, optional=True)
DATABASE_URL = Kind(
    allowed="a URL such as sqlite:////path, postgresql://user:password@host/name, mysql://user:password@host/name",
    parse=_database_url,
    secret=True,
)
ENDPOINT_URL = Kind(allowed="http://host:port or https://host:port", parse=_endpoint_url, optional=True)
HOST = Kind(allowed="host or host:port, without http://", parse=_host)
ADDRESSING_STYLE = _choice("path", "virtual", "auto")
LOG_FORMAT = _choice("text", "json")
META_TYPE = _choice("sql", prefix="meta_backends.")
STORAGE_TYPE = _choice("file", "s3", "minio", "null", prefix="data_backends.", synonyms={"directory": "file"})
