"""`backyfs export`: write versions to a file, without their blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.stdout import stdout_file
from backyfs.errors import UsageError

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation

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
    help="backy2 means the CSV of backy2 2.12.1 or later, one file for each version.",
)
@click.pass_obj
def command(invocation: Invocation, names: tuple[str, ...], *, every: bool, form: str) -> None:
    """Write VERSION, or with --all every version, to FILE; - is standard output.

    The file contains all metadata: names, dates, tags, statistics, which stored block each block of the image is, and
    the wrapped keys. It does not contain stored blocks. With --all and --format backy2, FILE is a directory, which is
    created.
    """
    if len(names) != (1 if every else 2):
        raise UsageError("name a VERSION and a FILE, or --all and a FILE")
    from backyfs.engine.transfer.export import Format, export  # noqa: PLC0415 - SQLAlchemy is slow to load

    wanted, file = (None if every else names[0]), names[-1]
    with invocation.open_repository() as repository:
        export(repository, wanted, None if file == _STDOUT else file, Format(form), stdout_file)
