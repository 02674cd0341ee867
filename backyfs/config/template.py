"""Write the text of a new configuration file for `backyfs init`, or build the part of it that describes a storage."""

from __future__ import annotations

import textwrap
from contextlib import contextmanager
from typing import TYPE_CHECKING

from backyfs.config.document import Document
from backyfs.config.loader import build, build_storage
from backyfs.config.table import SECTION_KEYS, STORAGE_KEYS, STORAGE_TYPE
from backyfs.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backyfs.config.settings import StorageConfig

_HEADER = """\
# Configuration of backyfs. The page "Configuration" of the manual describes all keys.
#
# Write comments on separate lines, and a % in a value as %%. Paths are relative to the directory of this
# file, and ~/ is the home of the user who runs backyfs.
"""

_SCHEDULERS = """\
# Schedulers: how often to back up a source, and how many of its backups to keep. Each is a section with a name
# of your choice; durations have the units s, m, h, d and w. The systemd units tag their backups for these three:
# remove the "# " from those that you want.
#
# [daily]
# interval: 1d
# keep: 8
# sla: 6h
#
# [weekly]
# interval: 1w
# keep: 4
# sla: 1d
#
# [monthly]
# interval: 30d
# keep: 3
# sla: 3d
"""

_HOOKS = """\
# Hooks: your commands that run before and after commands of backyfs. Environment variables describe the command.
# The page "Hooks" of the manual has examples.
#
# [hooks]
# before_backup: /usr/local/sbin/freeze
# after_backup: /usr/local/sbin/thaw
# on_failure: logger -p user.err "backyfs $BACKYFS_COMMAND failed: $BACKYFS_ERROR"
"""

_COMMENT_WIDTH = 100


def config_text(
    *,
    database_url: str,
    storage: Mapping[str, str],
    key_file: str | None = None,
    secret: Mapping[str, str] | None = None,
    encryption_version: int | None,
    block_size: int,
    logfile: str | None,
) -> str:
    """Return the text of a configuration with these values and a comment above every key.

    `storage` has the keys of [DataBackend], beginning with its type.

    A key whose value is None is left out. `secret` contains keys of [DEFAULTS] for a key or passphrase, instead of a
    key file. A value may not begin or end with white space or contain line breaks.

    Raises:
        ConfigError: a value is not allowed, or the format of the file cannot represent it.
    """
    defaults = {
        "logfile": logfile,
        "block_size": str(block_size),
        "encryption_version": None if encryption_version is None else str(encryption_version),
        "encryption_key_file": key_file,
        **(secret or {}),
    }
    sections = {
        "DEFAULTS": {key: value for key, value in defaults.items() if value is not None},
        "MetaBackend": {"type": "sql", "engine": database_url},
        "DataBackend": dict(storage),
    }
    texts = [_section(name, keys) for name, keys in sections.items()]
    return _verified("\n".join([_HEADER, *texts, _SCHEDULERS, _HOOKS]))


def storage_config(values: Mapping[str, str]) -> StorageConfig:
    """Return the configuration of a storage that has these keys of [DataBackend], beginning with its type.

    Raises:
        ConfigError: a value is not allowed, or the format of the file cannot represent it.
    """
    text = _section("DataBackend", dict(values))
    with _without_line():
        return build_storage(Document([("", text)]))


def _section(section: str, values: dict[str, str]) -> str:
    keys = SECTION_KEYS.get(section) or (STORAGE_TYPE, *STORAGE_KEYS[values["type"]])
    meanings = {key.name: key.meaning for key in keys}
    for name, value in values.items():
        _check_representable(section, name, value)
    paragraphs = [
        "\n".join([*_comment(meanings[name]), f"{name}: {value.replace('%', '%%')}\n"])
        for name, value in values.items()
    ]
    return f"[{section}]\n" + "\n".join(paragraphs)


def _comment(meaning: str) -> list[str]:
    return textwrap.wrap(meaning, _COMMENT_WIDTH, initial_indent="# ", subsequent_indent="# ")


def _verified(text: str) -> str:
    """Return the text if it is a valid configuration."""
    with _without_line():
        build(Document([("", text)]), {"HOME": "/"})
    return text


@contextmanager
def _without_line() -> Iterator[None]:
    """Leave file and line out of errors, because the file does not exist."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(error.fact, section=error.section, key=error.key, remedy=error.remedy) from error


def _check_representable(section: str, name: str, value: str) -> None:
    # In Python, a file name that is not UTF-8 has surrogates. Do not show the value: it may contain a password.
    if value != value.strip() or any(one in "\0\n" or "\ud800" <= one <= "\udfff" for one in value):
        raise ConfigError(
            f"{name} has white space at an end, a line break, or bytes that are not UTF-8, which a configuration file "
            "cannot contain",
            section=section,
            key=name,
        )
