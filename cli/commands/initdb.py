"""`backyfs initdb`: make the repository that an existing configuration names."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import print_object
from backyfs.cli.text import printable

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation


@click.command()
@click.pass_obj
def command(invocation: Invocation) -> None:
    """Make the repository that the configuration names: database tables, key slot, storage directory.

    For a configuration that exists; `backyfs init` writes one too. A repository that exists stays as it is, except for
    an upgrade of its schema; as in backy2, that is not an error. The storage may hold blocks of a lost database: import
    the exports of its versions next. If the storage holds a catalog, use `backyfs recover` instead.
    """
    from backyfs import keys  # noqa: PLC0415 - slow to load, and --help needs none of it
    from backyfs.metadata.db.database import Database  # noqa: PLC0415
    from backyfs.metadata.db.revisions import SchemaState  # noqa: PLC0415
    from backyfs.metadata.records.identity import list_key_slots, load_identity  # noqa: PLC0415
    from backyfs.repository import create_repository  # noqa: PLC0415

    config = invocation.load_config()
    with closing(Database(config.database_url)) as database:
        is_there = database.schema().state is not SchemaState.NONE
    if is_there:
        with invocation.open_repository():
            pass
    else:
        create_repository(config, created_at=datetime.now(UTC), may_hold_blobs=True)
        invocation.keep_catalog()
    with closing(Database(config.database_url)) as database:
        with database.read() as connection:
            identity, slots = load_identity(connection), list_key_slots(connection)
        checks = [keys.show_check(slot.key_check) for slot in slots]
        if invocation.form is OutputForm.JSON:
            print_object(
                {
                    "configuration": list(config.files),
                    "database": database.place,
                    "key": checks[0] if checks else None,
                    "block_size": identity.block_size,
                    "uid": identity.uid,
                }
            )
        elif invocation.form is OutputForm.TABLE:
            what = "is there already" if is_there else "was made"
            click.echo(f"repository {identity.uid} {what} in {printable(database.place)}")
            if checks:
                click.echo(f"key {checks[0]}")
            elif (config.key is None and config.passphrase is None) or config.encryption_version == 0:
                click.echo("no encryption: whoever can read the blocks can read the data")
