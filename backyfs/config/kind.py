"""Convert the text of a key to its value, or describe why that is impossible. Pure.

A kind of value raises Refused. It knows neither the key nor its location; the loader adds both.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from backyfs.config.databaseurl import is_port, mistake_in_url
from backyfs.config.places import path_below
from backyfs.model import Deduplication

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BLOCK_SIZE = 64 << 20
MAX_COMPRESSION_LEVEL = 19  # higher levels gain nothing with blocks of this size
_SECTOR_BYTES = 512
_MAX_NUMBER = 2**63 - 1  # the largest number that a database column can store
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_MAX_DAYS = 36500  # a hundred years, so that dates stay within the range of datetime
_MAX_DURATION_S = _MAX_DAYS * 86400
_BOOLEANS = {
    "1": True, "0": False, "true": True, "false": False, "yes": True, "no": False, "on": True, "off": False,
}
_ECHOED_CHARACTERS = 80
_CREDENTIALS_IN_URL = (
    "contains a user or password", "write them as aws_access_key_id and aws_secret_access_key"
)


class Refused(Exception):  # noqa: N818 - the loader turns it into a ConfigError
    """The text is not a value of this kind. `fact` continues after the name of the key; empty: the usual sentence."""

    def __init__(self, fact: str = "", remedy: str | None = None) -> None:
        self.fact = fact
        self.remedy = remedy
        super().__init__(fact)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathContext:
    """The directories that paths in a configuration are relative to."""

    directory: str    # of the configuration file with the key; absolute
    home: str | None  # for paths that begin with ~/


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueKind:
    """One kind of value."""

    allowed: str  # ends the sentence "key is 'text'; allowed: ..."
    parse: Callable[[str, PathContext], object]
    secret: bool = False      # never show the text
    many_lines: bool = False  # the text may have several lines
    optional: bool = False    # an empty text means the same as a missing key

    def value(self, text: str, context: PathContext) -> object:
        """Return the value of the text.

        Raises:
            Refused: the text is not a value of this kind.
        """
        if "\n" in text and not self.many_lines:
            raise Refused("has several lines", "an indented line continues the key above it")
        try:
            return self.parse(text, context)
        except Refused as refused:
            raise (refused if refused.fact else self._usual_refusal(text)) from None

    def _usual_refusal(self, text: str) -> Refused:
        if self.secret:
            return Refused(f"has {len(text)} characters", f"allowed: {self.allowed}")
        shown = text if len(text) <= _ECHOED_CHARACTERS else text[:_ECHOED_CHARACTERS] + "..."
        remark = "; write comments on separate lines" if re.search(r"\s[#;]", text) else ""
        return Refused(f"is {shown!r}", f"allowed: {self.allowed}{remark}")


def _number(text: str, _: PathContext, *, least: int = 0) -> int:
    # Check the length first: int() raises another error for thousands of digits.
    if not re.fullmatch("[0-9]{1,19}", text) or not least <= int(text) <= _MAX_NUMBER:
        raise Refused
    return int(text)


def _count(text: str, context: PathContext) -> int:
    return _number(text, context, least=1)


def _compression_level(text: str, context: PathContext) -> int:
    level = _count(text, context)
    return level if level <= MAX_COMPRESSION_LEVEL else _refuse()


def _block_size(text: str, context: PathContext) -> int:
    size = _number(text, context)
    if size % _SECTOR_BYTES or not _SECTOR_BYTES <= size <= MAX_BLOCK_SIZE:
        raise Refused
    return size


def _duration(text: str, _: PathContext) -> int:
    found = re.fullmatch("([0-9]{1,10})([smhdw])", text)
    seconds = int(found[1]) * _SECONDS[found[2]] if found else -1
    if not 0 <= seconds <= _MAX_DURATION_S:
        raise Refused
    return seconds


def _interval(text: str, context: PathContext) -> int:
    return _duration(text, context) or _refuse()


def _days(text: str, context: PathContext) -> int:
    days = _number(text, context)
    return days if days <= _MAX_DAYS else _refuse()


def _boolean(text: str, _: PathContext) -> bool:
    if text.lower() not in _BOOLEANS:
        raise Refused
    return _BOOLEANS[text.lower()]


def _deduplication(text: str, context: PathContext) -> Deduplication:
    if text.lower() == Deduplication.SAME_VERSION.value:
        return Deduplication.SAME_VERSION
    return Deduplication.ON if _boolean(text, context) else Deduplication.OFF


def _hash_function(text: str, _: PathContext) -> str:
    if text == "blake3":
        return text
    if text not in hashlib.algorithms_available:
        raise Refused
    try:
        made = hashlib.new(text, usedforsecurity=False)
    except ValueError:  # OpenSSL lists it but no longer supports it
        raise Refused from None
    if not made.digest_size:  # shake: its digest has no fixed length
        raise Refused
    return text


def _hex_key(text: str, _: PathContext) -> str:
    return text if re.fullmatch("[0-9a-fA-F]{64}", text) else _refuse()


def _text(text: str, _: PathContext) -> str:
    return text or _refuse()


def _words(text: str, _: PathContext) -> tuple[str, ...]:
    words = tuple(text.split())
    if not all(re.fullmatch("RBD_FEATURE_[A-Z0-9_]+", word) for word in words):
        raise Refused
    return words


def _path(text: str, context: PathContext) -> str:
    if not text.startswith("~"):
        return path_below(context.directory, _text(text, context))
    name, _, rest = text.partition("/")
    if name != "~":
        raise Refused(f"begins with {name}/, but only ~/ is supported", f"write the whole path, or ./{name}")
    if context.home is None:
        raise Refused("begins with ~, but the variable HOME does not contain a directory", "write the whole path")
    return path_below(context.home, rest.lstrip("/"))


def _database_url(text: str, context: PathContext) -> str:
    """Make the path of an SQLite URL absolute; return other URLs unchanged. Show no URL: it can contain a password."""
    if not re.match(r"[a-z][a-z0-9_+]*://", text):
        raise Refused("is not the URL of a database", f"allowed: {DATABASE_URL.allowed}")
    scheme, _, rest = text.partition("://")
    if scheme.partition("+")[0] != "sqlite":
        return text if (mistake := mistake_in_url(text)) is None else _refuse(mistake.fact, mistake.remedy)
    location, question_mark, query = rest.partition("?")
    if location in ("", "/", "/:memory:"):
        raise Refused("is a database in memory, which is lost when the command ends", "name a file: sqlite:////path")
    if not location.startswith("/"):
        raise Refused("has a host, which SQLite does not use", "write sqlite:///relative or sqlite:////path")
    if location.startswith("/file:"):
        raise Refused("has a URL within the URL", "write the path, as in sqlite:////path")
    written = location[1:]
    path = _path(written, context)
    if "?" in path or path.count("%") > written.count("%"):  # both have another meaning in a URL
        raise Refused("is relative to a directory with ? or % in its name", "write sqlite:////another/path")
    return f"{scheme}:///{path}{question_mark}{query}"


def _endpoint_url(text: str, _: PathContext) -> str:
    scheme, _separator, rest = text.partition("://")
    if "@" in text:
        _refuse(*_CREDENTIALS_IN_URL)
    host, _slash, path = rest.partition("/")
    is_url = scheme in ("http", "https") and _is_host(host) and re.fullmatch("[0-9A-Za-z._~/-]*", path)
    return text if is_url else _refuse()


def _host(text: str, _: PathContext) -> str:
    if "@" in text:
        _refuse(*_CREDENTIALS_IN_URL)
    return text if _is_host(text) else _refuse()


def _is_host(text: str) -> bool:
    found = re.fullmatch(r"(?:[0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\])(?::(.+))?", text)
    return found is not None and is_port(found[1])


def _bucket(text: str, _: PathContext) -> str:
    # A colon separates the tenant of radosgw.
    return text if re.fullmatch("[0-9A-Za-z][0-9A-Za-z.:_-]*", text) else _refuse()


def _object_prefix(text: str, _: PathContext) -> str:
    prefix = text.strip("/")
    segments = prefix.split("/")
    return prefix if all(re.fullmatch(r"[0-9A-Za-z_-][0-9A-Za-z._-]*", one) for one in segments) else _refuse()


def _proxy_url(text: str, _: PathContext) -> str:
    found = re.fullmatch(r"(?:https?|socks5h?)://(?:[^\s/]*@)?([^\s/@]+)/?", text)
    return text if found is not None and _is_host(found[1]) else _refuse()


def _choice(*names: str, prefix: str = "", synonyms: dict[str, str] | None = None) -> ValueKind:
    """Return a kind with these names. With a prefix, a name may also be written as a module of backy2 or backyfs."""
    meaning = {name: name for name in names} | (synonyms or {})
    starts = ("", f"backy2.{prefix}", f"backyfs.{prefix}") if prefix else ("",)
    spellings = {start + name: meant for name, meant in meaning.items() for start in starts}

    def parse(text: str, _: PathContext) -> str:
        return spellings.get(text) or _refuse()

    also = f"; also as backy2.{prefix}NAME or backyfs.{prefix}NAME" if prefix else ""
    return ValueKind(allowed=", ".join(meaning) + also, parse=parse, optional=not prefix)


def _refuse(fact: str = "", remedy: str | None = None) -> NoReturn:
    raise Refused(fact, remedy)


NUMBER = ValueKind(allowed="a whole number, 0 or more", parse=_number)
COUNT = ValueKind(allowed="a whole number, 1 or more", parse=_count)
COMPRESSION_LEVEL = ValueKind(allowed=f"a whole number from 1 to {MAX_COMPRESSION_LEVEL}", parse=_compression_level)
BLOCK_SIZE = ValueKind(
    allowed=f"a number of bytes that is a multiple of 512, from 512 to {MAX_BLOCK_SIZE}",
    parse=_block_size,
)
DURATION = ValueKind(allowed="a number and a unit (s, m, h, d, w), as in 12h, up to 36500d", parse=_duration)
INTERVAL = ValueKind(allowed="a number, 1 or more, and a unit (s, m, h, d, w), as in 1d", parse=_interval)
DAYS = ValueKind(allowed=f"a whole number from 0 to {_MAX_DAYS}", parse=_days)
OPTIONAL_BOOLEAN = ValueKind(allowed=", ".join(_BOOLEANS), parse=_boolean, optional=True)
DEDUPLICATION = ValueKind(
    allowed=f"{OPTIONAL_BOOLEAN.allowed}, {Deduplication.SAME_VERSION.value}", parse=_deduplication
)
HASH_FUNCTION = ValueKind(
    allowed="blake3, or a name in Python's hashlib with digests of one length, such as sha512",
    parse=_hash_function,
)
HEX_KEY = ValueKind(allowed="64 hex digits", parse=_hex_key, secret=True)
TEXT = ValueKind(allowed="any text", parse=_text)
OPTIONAL_TEXT = ValueKind(allowed="any text", parse=_text, optional=True)
SECRET_TEXT = ValueKind(allowed="any text", parse=_text, optional=True, secret=True)
FEATURES = ValueKind(allowed="names such as RBD_FEATURE_LAYERING", parse=_words, many_lines=True)
PATH = ValueKind(allowed="a path", parse=_path)
OPTIONAL_PATH = ValueKind(allowed="a path", parse=_path, optional=True)
DATABASE_URL = ValueKind(
    allowed="a URL such as sqlite:////path, postgresql://user:password@host/name, mysql://user:password@host/name",
    parse=_database_url,
    secret=True,
)
ENDPOINT_URL = ValueKind(allowed="http://host:port or https://host:port", parse=_endpoint_url, optional=True)
PROXY_URL = ValueKind(allowed="http://host:port", parse=_proxy_url, optional=True, secret=True)
OBJECT_PREFIX = ValueKind(
    allowed="letters, digits and . _ - /, without a dot after a slash", parse=_object_prefix, optional=True
)
BUCKET = ValueKind(allowed="letters, digits and . _ - :", parse=_bucket)
HOST = ValueKind(allowed="host or host:port, without http://", parse=_host)
ADDRESSING_STYLE = _choice("path", "virtual", "auto")
LOG_FORMAT = _choice("text", "json")
META_TYPE = _choice("sql", prefix="meta_backends.")
STORAGE_TYPE = _choice("file", "s3", "minio", "null", prefix="data_backends.", synonyms={"directory": "file"})
