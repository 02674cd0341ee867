"""`backyfs recover`: rebuild the database from the storage and the key alone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from backyfs.cli.commands.key import read_recovery_page
from backyfs.cli.failures import raise_all
from backyfs.cli.invocation import OutputForm
from backyfs.cli.options import real_path
from backyfs.cli.output import print_object, print_rows
from backyfs.cli.passphrases import asking, read_secret, secret_options
from backyfs.cli.remedies import render_remedy
from backyfs.cli.storages import BUCKET_OPTIONS, bucket_options
from backyfs.cli.text import printable
from backyfs.engine.setup.places import named_storage
from backyfs.errors import UsageError
from backyfs.reports.recover import COLUMNS, as_object, loss_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.cli.invocation import Invocation
    from backyfs.engine.setup.recovery import RecoveredRepository


@click.command()
@click.argument("storage", required=False)
@bucket_options
@secret_options()
@click.option(
    "--from-recovery",
    "recovery_file",
    metavar="FILE",
    help="Use the recovery page in FILE, - for stdin, that `key export` or `key print` wrote.",
)
@click.option(
    "--to",
    callback=real_path,
    metavar="FILE|URL",
    help="SQLite file to create, or the URL of an empty database, as in postgresql://user:password@host/name.",
)
@click.option(
    "--check-objects", is_flag=True, help="Also check that the object of every block is in the storage."
)
@click.pass_obj
def command(
    invocation: Invocation,
    /,
    *,
    storage: str | None,
    recovery_file: str | None,
    to: str | None,
    check_objects: bool,
    **options: str | None,
) -> None:
    """Rebuild the database from the copy of the metadata in STORAGE, and the key.

    STORAGE is a directory or s3://BUCKET/PREFIX.

    Whatever is not given is taken from the configuration, if there is one: storage, key and database. If there is none,
    one is written. The database has to be empty. If the command is stopped, run it again: it starts from the beginning.

    What cannot be recovered is listed, everything else is recovered, and the exit status is 20.
    """
    from backyfs.engine.setup import recovery  # noqa: PLC0415 - SQLAlchemy is slow to load

    bucket = {name: options.pop(name) for name in BUCKET_OPTIONS}
    if storage is None and any(bucket.values()):
        raise UsageError(
            "is not named, so the options for a bucket would be ignored",
            subject="STORAGE",
            remedy="name it as s3://BUCKET/PREFIX, or leave them out to use the storage of the configuration",
        )
    target = recovery.recovery_target(
        os.environ,
        config_file=invocation.config_file or os.environ.get("BACKYFS_CONFIG") or None,
        load_config=invocation.load_config,
        storage=None if storage is None else named_storage(storage, **bucket),
        database=to,
        as_root=os.geteuid() == 0,
    )
    key = recovery.KeyChoice(
        page=None if recovery_file is None else read_recovery_page(recovery_file),
        options={name: text for name, text in options.items() if text is not None},
        read=lambda: read_secret(**options),
        ask=asking(),
    )
    recovered = recovery.recover_repository(
        target, key, check_objects=check_objects, stop=invocation.interrupted.is_set, control=invocation.control
    )
    _print(invocation, recovered)
    raise_all(recovered.errors)


def _print(invocation: Invocation, recovered: RecoveredRepository) -> None:
    if invocation.form is OutputForm.JSON:
        print_object(as_object(recovered, render_remedy))
        return
    if recovered.losses or invocation.form is OutputForm.PIPE:
        print_rows(invocation, loss_rows(recovered, render_remedy), COLUMNS)
    if invocation.form is OutputForm.PIPE:
        return
    for line in _lines(recovered):
        click.echo(line)


def _lines(recovered: RecoveredRepository) -> Iterator[str]:
    report, target = recovered.report, recovered.target
    yield (
        f"repository {report.repository.identity.uid}: {report.versions} versions with {report.blobs} blobs are in "
        f"{printable(recovered.database)}"
    )
    if report.index is not None:
        yield (
            f"The catalog's index is number {report.index.number}, written {report.index.written_at:%Y-%m-%d %H:%M:%S} "
            "UTC. If later commands have written to this repository, the storage is in an older state."
        )
    if report.unlisted:
        yield (
            f"{len(report.unlisted)} versions are not in the index: {', '.join(map(printable, report.unlisted))}. The "
            "last command was killed before it wrote the index, or they were removed and put back."
        )
    if report.invalid:
        yield (
            f"{len(report.invalid)} versions are invalid now, because they lack blocks. If you can find what is "
            "listed, put it back and recover once more, into another database."
        )
    if target.config is None:
        yield f"The configuration is {printable(target.places.config_file)}."
    else:
        files = ", ".join(map(printable, target.config.files))
        yield f"The configuration {files} already existed and was not changed: check [MetaBackend] and [DataBackend]."
    yield "Run `backyfs scrub --all` to read all blocks and check them."
