"""What a shell offers to complete: commands, options, files, and what the repository has.

Asked at every press of a key: answers are quick or empty. Nothing is upgraded, logged or told; what goes wrong
is no offer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, ShellComplete

from backyfs.cli.shells import SHELLS, Asked
from backyfs.moments import date_text, time_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from backyfs.model import Version

_PATIENCE_S = 2.0  # a database that does not answer by then has nothing to offer
_LATEST = "latest"


def answer(cli: click.Group, shell_name: str, words: Sequence[str]) -> int:
    """Print what the shell may offer, and return the exit status.

    `words` are those of the command line up to the one that is to be completed, without the name of the
    program; bash gives the whole line instead, in COMP_LINE.
    """
    logging.disable(logging.CRITICAL)
    shell = SHELLS.get(shell_name)
    if shell is None:
        return 1
    # An exception would be told in the midst of what the user types.
    with contextlib.suppress(Exception):
        asked = shell.asked(words, os.environ)
        for item in _offers(cli, asked):
            # No shell takes from a line what cannot be printed; what it makes of an expansion, nobody knows here.
            if str(item.value).isprintable() and (item.type != "plain" or not asked.expands):
                click.echo(shell.line(item, asked))
    return 0


def offer_values(command: click.Command) -> None:
    """Let the arguments and options of a command that are plain text offer what their names say."""
    for parameter in command.params:
        if type(parameter.type) is type(click.STRING):
            parameter.type = _Text()
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            offer_values(inner)


def version_items(context: click.Context, incomplete: str) -> list[CompletionItem[str]]:
    """Return what names a version and begins so: uids, NAME@latest, NAME@DATE where the @ is there."""
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
    """Return the names of versions that begin so."""
    return _beginning(incomplete, ((name, "") for name in dict.fromkeys(one.name for one in _versions(context))))


class _Text(click.types.StringParamType):
    """Text; what of it a shell can offer is told by how the parameter is called."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        """Return offers."""
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
    """Return the versions of the repository that the command line names; none, if they cannot be had at once."""
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
    from backyfs.metadata.db.database import Database  # noqa: PLC0415 - most completions need none of it
    from backyfs.metadata.db.revisions import SchemaState  # noqa: PLC0415
    from backyfs.metadata.records.versions import list_versions  # noqa: PLC0415
    from backyfs.trust import load_trusted_config  # noqa: PLC0415

    # The shell would have done this before the command saw it.
    named = None if file is None else os.path.expanduser(os.path.expandvars(file))
    config, _ = load_trusted_config(named, os.environ)
    with closing(Database(config.database_url)) as database:
        if database.schema().state is not SchemaState.CURRENT:
            return []
        with database.read() as connection:
            return list_versions(connection)


def _beginning(incomplete: str, offers: Iterable[tuple[str, str]]) -> list[CompletionItem[str]]:
    """Return the offers that begin so. One that looks like an option takes a hyphen to be offered, after a --."""
    return [
        CompletionItem(value, help=text or None)
        for value, text in offers
        if value.startswith(incomplete) and (incomplete or not value.startswith("-"))
    ]


def _description(version: Version) -> str:
    return f"{version.name} {time_text(version.created_at, to='minutes')}"
