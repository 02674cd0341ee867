"""Parse the text of configuration files into sections and keys with their file and line, without interpreting them.

All errors of configparser are caught here. Their messages are neither shown nor chained, because they quote the line,
which can contain a key or a password.
"""

from __future__ import annotations

import configparser
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.errors import ConfigError
from backyfs.files import read_input
from backyfs.remedies import Advice

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MAX_BYTES = 1 << 20  # of a file
_INHERITED = configparser.DEFAULTSECT  # [DEFAULT], not [DEFAULTS]: its keys apply to every section


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """The location of a section header or a key."""

    file: str
    line: int
    section: str
    key: str = ""  # empty for a section header

    def error(self, fact: str, remedy: str | None = None) -> ConfigError:
        """Return an error with this location."""
        return ConfigError(
            fact, file=self.file, section=self.section, key=self.key, line=self.line, remedy=remedy
        )


class Document:
    """The merged text of several files. A key in a later file replaces the same key in an earlier one."""

    def __init__(self, files: Iterable[tuple[str, str]]) -> None:
        """Parse (name, text) pairs.

        Raises:
            ConfigError: a text does not consist of sections and keys, or has one of them twice.
        """
        self._parser = configparser.ConfigParser()
        self._places: dict[str, dict[str, Location]] = {}
        self.files: tuple[str, ...] = ()
        for file, text in files:
            self.files += (file,)
            try:
                self._parser.read_string(text, source=file)
            except configparser.Error as error:
                raise _config_error(error, file, text) from None
            for place in _scan(file, text):
                # The first header of a section is stored under the empty key.
                keys = self._places.setdefault(place.section, {"": place})
                if place.key:
                    keys[place.key] = place

    @classmethod
    def read(cls, files: Iterable[str]) -> Document:
        """Read and parse the files.

        Raises:
            ConfigError: a file cannot be read or is not a configuration.
        """
        return cls((file, _read_text(file)) for file in files)

    def sections(self) -> Iterator[Location]:
        """Yield the headers of all sections, in order."""
        return (keys[""] for keys in self._places.values())

    def own_keys(self, section: str) -> Iterator[Location]:
        """Yield the keys of a section without those inherited from [DEFAULT]."""
        return (place for key, place in self._places.get(section, {}).items() if key)

    def place(self, section: str, key: str) -> Location | None:
        """Return where a key that applies to a section is set, possibly in [DEFAULT]; None if it is not set."""
        if section not in self._places:
            return None
        return self._places[section].get(key) or self._places.get(_INHERITED, {}).get(key)

    def text(self, section: str, place: Location) -> str:
        """Return the value of the key at `place` with the interpolation of `section`.

        Raises:
            ConfigError: the value has an invalid %.
        """
        try:
            return self._parser.get(section, place.key)
        except configparser.InterpolationError:
            raise place.error(f"{place.key} has a % that does not name a key", "write a plain % as %%") from None


def _read_text(file: str) -> str:
    try:
        content = read_input(file, _MAX_BYTES)
    except FileNotFoundError as error:
        raise ConfigError("does not exist", file=file, remedy=Advice.MAKE_REPOSITORY()) from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=file) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError("has bytes that are not UTF-8 text", file=file, line=line) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ConfigError("has a NUL byte, so it is not a text file", file=file, line=line)
    return text


def _scan(file: str, text: str) -> Iterator[Location]:
    """Yield the headers and keys of a text as configparser finds them. It does not record their lines."""
    section = key = None
    indent = 0
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith(("#", ";")):
            continue
        depth = len(line) - len(line.lstrip())
        if key and depth > indent:
            continue  # continues the value above
        indent = depth
        if header := configparser.ConfigParser.SECTCRE.match(stripped):
            section, key = header["header"], None
            yield Location(file=file, line=number, section=section)
        elif section is not None and (option := configparser.ConfigParser.OPTCRE.match(stripped)):
            key = option["option"].rstrip().lower()  # configparser.optionxform
            yield Location(file=file, line=number, section=section, key=key)


def _config_error(error: configparser.Error, file: str, text: str) -> ConfigError:
    """Return an error of ours for one of configparser, without quoting the text."""
    if isinstance(error, configparser.MissingSectionHeaderError):
        remedy = "begin a section above it, such as [DEFAULTS]"
        return ConfigError("is before the first section", file=file, line=error.lineno, remedy=remedy)
    if isinstance(error, configparser.ParsingError):
        remedy = "allowed: [section], key: value, key = value, # comment"
        return ConfigError("is neither a section nor a key", file=file, line=error.errors[0][0], remedy=remedy)
    if isinstance(error, configparser.DuplicateSectionError | configparser.DuplicateOptionError):
        section, key = error.section, getattr(error, "option", "")
        first = next(place for place in _scan(file, text) if (place.section, place.key) == (section, key))
        return ConfigError(
            f"is set twice, first in line {first.line}",
            file=file,
            section=section,
            key=key,
            line=error.lineno,
            remedy="remove one of them",
        )
    return ConfigError("is not a configuration file", file=file)
