"""`backyfs export`: write versions to a file, without their blocks."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from backyfs import keys
from backyfs.errors import UsageError

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation
    from backyfs.model import Version
    from backyfs.repository import Repository

_STDOUT = "-"


@click.command()
@click.argument("names", nargs=-1, metavar="[VERSION] FILE")
@click.option("--all", "every", is_flag=True, help="Export every version.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["backyfs", "backy2"]),
    default="backyfs",
    show_default=True,
    help="backy2 is its CSV of releases from 2.12.1 on, a file for each version.",
)
@click.pass_obj
def command(invocation: Invocation, names: tuple[str, ...], *, every: bool, form: str) -> None:
    """Write VERSION, or with --all every version, to FILE; - is standard output.

    The file has all metadata: names, dates, tags, statistics, which blob each block is, and the wrapped keys. Stored
    blocks are not in it. With --all and --format backy2, FILE is a directory that is made.
    """
    if len(names) != (1 if every else 2):
        raise UsageError("name a VERSION and a FILE, or --all and a FILE")
    file = names[-1]
    with invocation.open_repository() as repository:
        from backyfs.metadata.versions import find_version, list_versions  # noqa: PLC0415 - slow to load

        with repository.database.read() as connection:
            chosen = list_versions(connection) if every else [find_version(connection, names[0])]
        if form == "backyfs":
            _export(repository, chosen, file)
            return
        key_source = invocation.load_config().key
        configured_key = None if key_source is None else keys.read_key(key_source)
        if not every:
            _export_for_backy2(repository, chosen[0], file, configured_key)
            return
        if file == _STDOUT:
            raise UsageError("--all --format backy2 writes a file for each version; name a directory")
        try:
            os.mkdir(file, 0o700)
        except OSError as error:
            raise UsageError(f"directory {file} cannot be made: {error.strerror}; name another one") from error
        for one in chosen:
            _export_for_backy2(repository, one, os.path.join(file, f"{one.uid}.csv"), configured_key)


def _export(repository: Repository, chosen: list[Version], path: str) -> None:
    from backyfs.engine.export import export_versions, new_file  # noqa: PLC0415 - slow to load

    with ExitStack() as opened:
        file = sys.stdout.buffer if path == _STDOUT else opened.enter_context(new_file(path))
        export_versions(repository, chosen, file)


def _export_for_backy2(repository: Repository, version: Version, path: str, configured_key: bytes | None) -> None:
    from backyfs.engine.export import export_for_backy2, new_file  # noqa: PLC0415 - slow to load

    with ExitStack() as opened:
        file = sys.stdout.buffer if path == _STDOUT else opened.enter_context(new_file(path))
        export_for_backy2(repository, version, file, configured_key=configured_key)
