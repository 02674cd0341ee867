"""Decide whether to trust a configuration. It contains commands, so anyone who can change it can run commands.

    run by   may be changed by                           if anyone else can change it
    a user   the user and root                           warning
    root     root                                        refused
    root     the user who owns it, if it has no          refused
             commands and only uses files that
             this user can use without root

The last row lets root work in the repository of a user. It must not let that user become root.
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import stat
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from backyfs.config import load_config
from backyfs.errors import ConfigError, DatabaseError
from backyfs.host.writers import writers_of
from backyfs.text import shell_word

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from backyfs.config import Config
    from backyfs.host.writers import Writer


def load_trusted_config(file: str | None, environ: Mapping[str, str]) -> tuple[Config, tuple[str, ...]]:
    """Return the configuration and warnings about it, like `load_config`, if it can be trusted.

    Raises:
        ConfigError: there is no configuration, it has a mistake, or this is root and others can change it.
    """
    config, warnings = load_config(file, environ)
    doubts = reasons_not_to_trust(config)
    if doubts and refuses_untrusted():
        raise ConfigError(doubts[0])
    return config, (*warnings, *doubts)


def refuses_untrusted() -> bool:
    """Return whether this user must refuse a configuration that others can change."""
    return os.geteuid() == 0


def reasons_not_to_trust(config: Config) -> list[str]:
    """Return the reasons not to trust a configuration, one sentence each, with the remedy. Runs and opens nothing."""
    user = _user_of(config)
    trusted = (0, os.geteuid()) if user is None else (0, user)
    found = [*_reasons_in_files(config, trusted)]
    if user is not None:
        found += [*_reasons_in_user_config(config, user)]
    return list(dict.fromkeys(found))


def commands_of(config: Config) -> dict[str, str]:
    """Return the commands in a configuration by their keys."""
    commands = dict(config.hooks.commands)
    if config.key is not None and config.key.command is not None:
        commands["encryption_key_command"] = config.key.command
    if config.passphrase is not None and config.passphrase.command is not None:
        commands["encryption_passphrase_command"] = config.passphrase.command
    return commands


def secret_files_of(config: Config) -> list[str]:
    """Return the key and passphrase files in a configuration."""
    files = [source.file for source in (config.key, config.passphrase) if source is not None]
    return [file for file in files if file is not None] + list(config.storage.secret_files)


def _user_of(config: Config) -> int | None:
    """Return the user whose configuration root is using; None if it is root's own, or this is not root."""
    if os.geteuid() != 0:
        return None
    owners = set()
    for file in config.files:
        with suppress(OSError):
            owners.add(os.stat(file).st_uid)
    return owners.pop() if len(owners) == 1 and owners != {0} else None


def _reasons_in_files(config: Config, trusted: Collection[int]) -> Iterator[str]:
    """Yield reasons not to trust files that decide which commands run: one for each place that others can change."""
    whom = "root" if os.geteuid() == 0 else "this user"
    reasons: list[tuple[str | None, str]] = [
        (file, f"others can change {file} and have commands run as {whom}") for file in config.files
    ]
    for name, command in commands_of(config).items():
        program = _program_of(command)
        reasons.append((program, f"others can change {program}, which {name} runs as {whom}"))
    reasons += [(file, f"others can replace the key in {file}") for file in secret_files_of(config)]
    found: dict[Writer, str] = {}
    for path, reason in reasons:
        with suppress(OSError):  # the command that needs the file reports that it cannot be opened
            for writer in [] if path is None else writers_of(path, trusted):
                found.setdefault(writer, f"{writer}, so {reason}; {writer.remedy}")
    yield from found.values()


def _program_of(command: str) -> str | None:
    """Return the program that a command runs, if it is given as an absolute path."""
    try:
        words = shlex.split(command)
    except ValueError:  # the shell will report the mistake
        return None
    return words[0] if words and os.path.isabs(words[0]) else None


def _reasons_in_user_config(config: Config, user: int) -> Iterator[str]:
    """Yield everything that a user's configuration makes root do and that the user could not."""
    file = config.files[-1]
    remedy = f"run backyfs as that user, or give the file and its directory to root (`chown root {shell_word(file)}`)"
    commands = commands_of(config)
    if commands:
        yield f"{file} belongs to user {user}, and its commands ({', '.join(commands)}) would run as root; {remedy}"
    for path in _used_paths(config):
        if not _is_within_reach(path, user):
            yield f"{file} belongs to user {user}, and names {path}, which that user cannot write to; {remedy}"


def _used_paths(config: Config) -> Iterator[str]:
    """Yield the paths that a command writes to or creates."""
    from backyfs.metadata.db.database import Database, sqlite_path  # noqa: PLC0415 - slow to load, rarely needed

    if config.logfile is not None:
        yield config.logfile
    if config.storage.local_path is not None:
        yield config.storage.local_path
    if config.storage.cache is not None:
        yield config.storage.cache
    with suppress(DatabaseError), closing(Database(config.database_url)) as database:
        path = sqlite_path(database.engine.url)
        if path is not None:
            yield path


def _is_within_reach(path: str, user: int) -> bool:
    """Return whether a user may write to, create or replace a path, judging by owner and mode."""
    real = os.path.realpath(path)
    while not os.path.lexists(real):
        real = os.path.dirname(real)
    about = os.stat(real)
    if _may_write(about, user):
        return True
    # A file that root created in the user's directory. If it has a second name, it may be a system file.
    return about.st_nlink == 1 and stat.S_ISREG(about.st_mode) and _may_write(os.stat(os.path.dirname(real)), user)


def _may_write(about: os.stat_result, user: int) -> bool:
    if about.st_uid == user or about.st_mode & stat.S_IWOTH:
        return True
    return bool(about.st_mode & stat.S_IWGRP) and about.st_gid in _groups_of(user)


def _groups_of(user: int) -> set[int]:
    try:
        account = pwd.getpwuid(user)
    except KeyError:
        return set()
    return {account.pw_gid, *(group.gr_gid for group in grp.getgrall() if account.pw_name in group.gr_mem)}
