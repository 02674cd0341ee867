"""Complete command lines for shells: commands, options, files, and versions in the repository.

A shell asks at every key press, so answers are quick or empty. Completion upgrades, logs and reports nothing; an error
means no completions.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, ShellComplete

from backyfs.cli.shells import SHELLS, Asked
from backyfs.moments import date_text, time_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from backyfs.model import Version

_PATIENCE_S = 2.0  # without an answer from the database by then, offer nothing
_LATEST = "latest"


def answer(cli: click.Group, shell_name: str, words: Sequence[str]) -> int:
    """Print completions for the shell, and return the exit status.

    `words` are the words of the command line up to the one to complete, without the name of the program. Bash passes
    the whole line in COMP_LINE instead.
    """
    logging.disable(logging.CRITICAL)
    shell = SHELLS.get(shell_name)
    if shell is None:
        return 1
    # A traceback would appear in the middle of the line that the user is typing.
    with contextlib.suppress(Exception):
        asked = shell.asked(words, os.environ)
        for item in _offers(cli, asked):
            # Shells cannot read unprintable characters from a line, and the result of an expansion is unknown here.
            if str(item.value).isprintable() and (item.type != "plain" or not asked.expands):
                click.echo(shell.line(item, asked))
    return 0


def offer_values(command: click.Command) -> None:
    """Give the text arguments and options of a command completions according to their names."""
    for parameter in command.params:
        if type(parameter.type) is type(click.STRING):
            parameter.type = _Text()
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            offer_values(inner)


def version_items(context: click.Context, incomplete: str) -> list[CompletionItem[str]]:
    """Return completions that name a version: uids, NAME@latest, and NAME@DATE after an @."""
    versions = _versions(context)
    name, separator, _ = incomplete.rpartition("@")
    if separator and any(version.name == name for version in versions):
        ours = [version for version in versions if version.name == name]
        dates = sorted({date_text(version.created_at) for version in ours}, reverse=True)
        return _beginning(incomplete, ((f"{name}@{moment}", "") for moment in (_LATEST, *dates)))
    names = dict.fromkeys(version.name for version in versions)
    return [
        *_beginning(incomplete, ((f"{name}@{_LATEST}", "") for name in names)),
        *_beginning(incomplete, ((version.uid, _description(version)) for version in versions)),
    ]


def name_items(context: click.Context, incomplete: str) -> list[CompletionItem[str]]:
    """Return completions from the names of versions."""
    return _beginning(incomplete, ((name, "") for name in dict.fromkeys(one.name for one in _versions(context))))


class _Text(click.types.StringParamType):
    """Text with completions according to the name of the parameter."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        """Return completions."""
        what = (param.metavar or param.name or "").lower()
        if what.startswith(("version", "uid")):
            return version_items(ctx, incomplete)
        if what == "name":
            return name_items(ctx, incomplete)
        if what.startswith(("directory", "mountpoint")):
            return [CompletionItem(incomplete, type="dir")]
        if what.startswith(("file", "path", "source", "target")):
            return [CompletionItem(incomplete, type="file")]
        return []


def _offers(cli: click.Group, asked: Asked) -> Iterable[CompletionItem[str]]:
    completer = ShellComplete(cli, {}, "backyfs", "")
    return completer.get_completions([*asked.words, *asked.option], asked.incomplete)


def _versions(context: click.Context) -> list[Version]:
    """Return the versions of the repository on the command line; none if they cannot be read quickly."""
    file = context.find_root().params.get("configfile")
    found: list[Version] = []
    reader = threading.Thread(target=_quietly, args=(lambda: found.extend(_read_versions(file)),), daemon=True)
    reader.start()
    reader.join(_PATIENCE_S)
    return list(found)


def _quietly(work: Callable[[], None]) -> None:
    with contextlib.suppress(Exception):
        work()


def _read_versions(file: str | None) -> list[Version]:
    from backyfs.engine.versions.listing import versions_without_key  # noqa: PLC0415 - most completions do not need it
    from backyfs.trust import load_trusted_config  # noqa: PLC0415 - as above

    # The shell would do this before it runs the command.
    named = None if file is None else os.path.expanduser(os.path.expandvars(file))
    config, _ = load_trusted_config(named, os.environ)
    return versions_without_key(config)


def _beginning(incomplete: str, offers: Iterable[tuple[str, str]]) -> list[CompletionItem[str]]:
    """Return the completions of a word. A value that looks like an option is only offered after a hyphen."""
    return [
        CompletionItem(value, help=text or None)
        for value, text in offers
        if value.startswith(incomplete) and (incomplete or not value.startswith("-"))
    ]


def _description(version: Version) -> str:
    return f"{version.name} {time_text(version.created_at, to='minutes')}"
