"""The text of configuration files: sections and keys, each with file and line, before any meaning.

Every error of configparser ends here. Its words are never passed on, and never chained to: they quote
the line, and the line can hold a key or a password.
"""

from __future__ import annotations

import configparser
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.errors import ConfigError
from backyfs.files import read_input

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MAX_BYTES = 1 << 20  # of a file
_INHERITED = configparser.DEFAULTSECT  # [DEFAULT]: its keys count in every section. Not [DEFAULTS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a section header or a key stands."""

    file: str
    line: int
    section: str
    key: str = ""  # empty for a section header

    def error(self, fact: str) -> ConfigError:
        """Return the error that says `fact` of this place."""
        return ConfigError(fact, file=self.file, section=self.section, key=self.key, line=self.line)


class Document:
    """The merged text of some files. A key in a later file replaces the same key in an earlier one."""

    def __init__(self, files: Iterable[tuple[str, str]]) -> None:
        """Parse (name, text) pairs.

        Raises:
            ConfigError: a text is not made of sections and keys, or has one of them twice.
        """
        self._parser = configparser.ConfigParser()
        self._places: dict[str, dict[str, Place]] = {}
        self.files: tuple[str, ...] = ()
        for file, text in files:
            self.files += (file,)
            try:
                self._parser.read_string(text, source=file)
            except configparser.Error as error:
                raise _config_error(error, file, text) from None
            for place in _scan(file, text):
                # The header of a section is kept under the empty key, where it stands first.
                keys = self._places.setdefault(place.section, {"": place})
                if place.key:
                    keys[place.key] = place

    @classmethod
    def read(cls, files: Iterable[str]) -> Document:
        """Read the files.

        Raises:
            ConfigError: a file cannot be read, or is not a configuration.
        """
        return cls((file, _read_text(file)) for file in files)

    def sections(self) -> Iterator[Place]:
        """Yield the headers of all sections, in order."""
        return (keys[""] for keys in self._places.values())

    def own_keys(self, section: str) -> Iterator[Place]:
        """Yield the keys that stand in a section itself."""
        return (place for key, place in self._places.get(section, {}).items() if key)

    def place(self, section: str, key: str) -> Place | None:
        """Return where a key that counts in a section stands, in [DEFAULT] perhaps; None: nowhere."""
        if section not in self._places:
            return None
        return self._places[section].get(key) or self._places.get(_INHERITED, {}).get(key)

    def text(self, section: str, place: Place) -> str:
        """Return the value of the key at `place`, as it counts in `section`.

        Raises:
            ConfigError: the value has a % that means nothing.
        """
        try:
            return self._parser.get(section, place.key)
        except configparser.InterpolationError:
            fact = f"{place.key} has a % that stands alone or names no key; write a plain % as %%"
            raise place.error(fact) from None


def _read_text(file: str) -> str:
    try:
        content = read_input(file, _MAX_BYTES)
    except FileNotFoundError as error:
        fact = "does not exist; run `backyfs init` or name another file with -c"
        raise ConfigError(fact, file=file) from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=file) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError("has bytes that are not UTF-8 text", file=file, line=line) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ConfigError("has a NUL byte; it is not a text file", file=file, line=line)
    return text


def _scan(file: str, text: str) -> Iterator[Place]:
    """Find the headers and keys of a text, as configparser does, which does not keep their lines."""
    section = key = None
    indent = 0
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith(("#", ";")):
            continue
        depth = len(line) - len(line.lstrip())
        if key and depth > indent:
            continue  # the value above goes on
        indent = depth
        if header := configparser.ConfigParser.SECTCRE.match(stripped):
            section, key = header["header"], None
            yield Place(file=file, line=number, section=section)
        elif section is not None and (option := configparser.ConfigParser.OPTCRE.match(stripped)):
            key = option["option"].rstrip().lower()  # configparser.optionxform
            yield Place(file=file, line=number, section=section, key=key)


def _config_error(error: configparser.Error, file: str, text: str) -> ConfigError:
    """Say in our words, and without quoting, what configparser found."""
    if isinstance(error, configparser.MissingSectionHeaderError):
        fact = "stands before any section; the first one has to begin above it, as in [DEFAULTS]"
        return ConfigError(fact, file=file, line=error.lineno)
    if isinstance(error, configparser.ParsingError):
        fact = "is neither a section nor a key; allowed: [section], key: value, key = value, # comment"
        return ConfigError(fact, file=file, line=error.errors[0][0])
    if isinstance(error, configparser.DuplicateSectionError | configparser.DuplicateOptionError):
        section, key = error.section, getattr(error, "option", "")
        first = next(place for place in _scan(file, text) if (place.section, place.key) == (section, key))
        fact = f"stands here for the second time, first in line {first.line}; take one of them out"
        return ConfigError(fact, file=file, section=section, key=key, line=error.lineno)
    return ConfigError("is not a configuration file", file=file)
