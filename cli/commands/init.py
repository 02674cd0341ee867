"""`backyfs init`: make a repository, with its configuration and key."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from backyfs.cli.invocation import OutputForm
from backyfs.cli.options import OptionalValue, real_path
from backyfs.cli.output import pipe_field, print_object
from backyfs.cli.text import printable
from backyfs.engine.setup.initialize import InitReport, default_places, initialize, named_database
from backyfs.model import DEFAULT_BLOCK_SIZE

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation


@click.command()
@click.option(
    "-c", "--configfile", cls=OptionalValue, callback=real_path, metavar="FILE", help="Configuration to write."
)
@click.option(
    "--data", cls=OptionalValue, callback=real_path, metavar="DIRECTORY", help="Directory for the stored blocks."
)
@click.option(
    "--db",
    cls=OptionalValue,
    callback=real_path,
    metavar="FILE|URL",
    help="SQLite file for the metadata, or the URL of an empty database, as in postgresql://user:password@host/name.",
)
@click.option(
    "--block-size",
    type=int,
    default=DEFAULT_BLOCK_SIZE,
    show_default=True,
    metavar="BYTES",
    help="Size of a block; it cannot be changed later.",
)
@click.option("--no-encryption", is_flag=True, help="Store blocks as they are.")
@click.pass_obj
def command(
    invocation: Invocation,
    configfile: str | None,
    data: str | None,
    db: str | None,
    block_size: int,
    *,
    no_encryption: bool,
) -> None:
    """Make a new repository: configuration, key, database and a directory for the blocks.

    As root they go to /etc/backyfs and /var/lib/backyfs, else to the XDG directories of the user. Nothing
    that exists is overwritten.
    """
    file = configfile or invocation.config_file or os.environ.get("BACKYFS_CONFIG") or None
    places = default_places(os.environ, as_root=os.geteuid() == 0, config_file=file)
    if data is not None:
        places = replace(places, storage_path=os.path.abspath(data))
    if db is not None:
        places = replace(places, database=named_database(db))
    _print(invocation, initialize(places, block_size=block_size, encrypted=not no_encryption))


def _print(invocation: Invocation, report: InitReport) -> None:
    places = report.places
    if invocation.form is OutputForm.JSON:
        print_object(
            {
                "configuration": places.config_file,
                "key_file": places.key_file if report.key_check else None,
                "key": report.key_check,
                "database": report.database,
                "storage": places.storage_path,
                "block_size": report.block_size,
            }
        )
        return
    if invocation.form is OutputForm.PIPE:
        click.echo(pipe_field(places.config_file))
        return
    click.echo(f"configuration  {printable(places.config_file)}")
    click.echo(f"database       {printable(report.database)}")
    click.echo(f"blocks         {printable(places.storage_path)}")
    if report.key_check is None:
        click.echo("encryption     none: whoever can read the blocks can read the data")
    else:
        click.echo(f"key            {printable(places.key_file)} ({report.key_check})")
        click.echo("")
        click.echo("Without the key nothing can be restored. Copy the key file to a safe place elsewhere, now: not on")
        click.echo("this machine, and not beside the blocks. The database can be rebuilt from both: `backyfs recover`.")
