"""`backyfs export`: write versions to a file, without their blocks."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import click

from backyfs import keys
from backyfs.cli.stdout import stdout_file
from backyfs.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

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
        from backyfs.metadata.records.versions import find_version, list_versions  # noqa: PLC0415 - slow to load

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
        from backyfs.engine.transfer.export import new_directory  # noqa: PLC0415 - slow to load

        new_directory(file, repository.own_paths)
        for one in chosen:
            _export_for_backy2(repository, one, os.path.join(file, f"{one.uid}.csv"), configured_key)


def _export(repository: Repository, chosen: list[Version], path: str) -> None:
    from backyfs.engine.transfer.export import export_versions  # noqa: PLC0415 - slow to load

    with _opened(repository, path) as file:
        export_versions(repository, chosen, file)


def _export_for_backy2(repository: Repository, version: Version, path: str, configured_key: bytes | None) -> None:
    from backyfs.engine.transfer.export import export_for_backy2  # noqa: PLC0415 - slow to load

    with _opened(repository, path) as file:
        export_for_backy2(repository, version, file, configured_key=configured_key)


@contextmanager
def _opened(repository: Repository, path: str) -> Iterator[BinaryIO]:
    """Give the file or standard output; everything written to it is on the disk at the end."""
    from backyfs.engine.transfer.export import new_file  # noqa: PLC0415 - slow to load

    with stdout_file() if path == _STDOUT else new_file(path, repository.own_paths) as file:
        yield file
