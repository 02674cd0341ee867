"""`backyfs init`: create a repository, with its configuration and key."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from backyfs.cli.invocation import OutputForm, noting_signals
from backyfs.cli.options import OptionalValue, real_path
from backyfs.cli.output import pipe_field, print_object
from backyfs.cli.storages import bucket_options
from backyfs.cli.text import printable
from backyfs.engine.setup.initialize import InitReport, initialize
from backyfs.engine.setup.places import default_places, named_database, named_storage
from backyfs.model import DEFAULT_BLOCK_SIZE
from backyfs.reports.init import as_object

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation


@click.command()
@click.option(
    "-c", "--configfile", cls=OptionalValue, callback=real_path, metavar="FILE", help="Configuration to write."
)
@click.option(
    "--data",
    "--storage",
    cls=OptionalValue,
    callback=real_path,
    metavar="DIRECTORY|s3://BUCKET/PREFIX",
    help="Directory or bucket for the stored blocks. A bucket must exist; it is not created.",
)
@bucket_options
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
    help="Size of a block. It cannot be changed later.",
)
@click.option("--no-encryption", is_flag=True, help="Store blocks unencrypted.")
@click.pass_obj
def command(
    invocation: Invocation,
    /,
    configfile: str | None,
    data: str | None,
    db: str | None,
    block_size: int,
    *,
    no_encryption: bool,
    **options: str | None,
) -> None:
    """Create a new repository: configuration, key, database, and a directory or bucket for the blocks.

    For root they go to /etc/backyfs and /var/lib/backyfs, for other users to the user's XDG directories. Nothing that
    exists is overwritten.
    """
    file = configfile or invocation.config_file or os.environ.get("BACKYFS_CONFIG") or None
    places = default_places(os.environ, as_root=os.geteuid() == 0, config_file=file)
    if data is not None or any(options.values()):
        places = replace(places, storage=named_storage(data or places.storage_name, **options))
    if db is not None:
        places = replace(places, database=named_database(db))
    with noting_signals(invocation.interrupted):
        report = initialize(
            places, block_size=block_size, encrypted=not no_encryption, stop=invocation.interrupted.is_set
        )
    _print(invocation, report)


def _print(invocation: Invocation, report: InitReport) -> None:
    places = report.places
    if invocation.form is OutputForm.JSON:
        print_object(as_object(report))
        return
    if invocation.form is OutputForm.PIPE:
        click.echo(pipe_field(places.config_file))
        return
    click.echo(f"configuration  {printable(places.config_file)}")
    click.echo(f"database       {printable(report.database)}")
    click.echo(f"blocks         {printable(places.storage_name)}")
    if report.key_check is None:
        click.echo("encryption     none: anyone who can read the blocks can read the data")
    else:
        click.echo(f"key            {printable(places.key_file)} ({report.key_check})")
        click.echo("")
        click.echo("Without the key, nobody can restore anything. Copy the key file to a safe place elsewhere: not")
        click.echo("on this machine, and not next to the blocks. `backyfs recover` rebuilds the database from both.")
