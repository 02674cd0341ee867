"""`backyfs recover`: rebuild the database from the storage and the key alone."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from backyfs.cli.commands.key import read_recovery_page
from backyfs.cli.invocation import OutputForm
from backyfs.cli.options import real_path
from backyfs.cli.output import Row, print_object, print_rows
from backyfs.cli.passphrases import asking, read_secret, secret_options
from backyfs.cli.text import printable
from backyfs.errors import IntegrityError, MissingKeyError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.catalog.repository import OpenPart
    from backyfs.cli.invocation import Invocation
    from backyfs.config import Config
    from backyfs.engine.catalog.recover import Loss, RecoveryReport
    from backyfs.engine.setup.initialize import Places
    from backyfs.keys.slots import Secret
    from backyfs.storage.protocol import Storage

_COLUMNS = ("name", "version", "reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """Where the repository is to be, and what names its key."""

    places: Places
    config: Config | None   # that there is already; it is not touched
    secret: dict[str, str]  # keys of a new configuration that name a key or passphrase
    storage_path: str | None  # None: the storage of the configuration


@click.command()
@click.argument("storage", required=False)
@secret_options()
@click.option(
    "--from-recovery",
    "recovery_file",
    metavar="FILE",
    help="Open the catalog by a recovery page in FILE, - for stdin, that `key export` or `key print` has written.",
)
@click.option(
    "--to",
    callback=real_path,
    metavar="FILE|URL",
    help="SQLite file to make, or the URL of an empty database, as in postgresql://user:password@host/name.",
)
@click.option(
    "--check-objects", is_flag=True, help="Look whether the object of every block is in the storage, too."
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
    """Rebuild the database from the catalog in the directory STORAGE, and the key.

    All that is not named is taken from the configuration, if there is one: storage, key and database. If there is
    none, one is written. A database that is not empty is refused. Ended early, the same command begins anew.

    What cannot be recovered is listed, the rest is there, and the exit status is 20.
    """
    from backyfs.engine.catalog.recover import open_catalog, recover  # noqa: PLC0415 - SQLAlchemy is slow to load
    from backyfs.metadata.db.database import Database  # noqa: PLC0415
    from backyfs.storage.directory import DirectoryStorage  # noqa: PLC0415
    from backyfs.storage.registry import open_storage  # noqa: PLC0415

    target = _target(invocation, storage, to, options)
    page = None if recovery_file is None else read_recovery_page(recovery_file)
    losses: list[Loss] = []
    opened: Storage
    if target.storage_path is not None:
        opened = DirectoryStorage(target.storage_path)
    else:
        assert target.config is not None, "checked before"
        opened = open_storage(target.config, invocation.interrupted.is_set)
    with closing(opened), closing(Database(target.places.database_url)) as database:
        place = database.place
        # The key may come from a FIFO or a command that takes its time: until it is there one signal ends all.
        catalog = open_catalog(opened, _asked(target, options), page, expects_key=_names_key(target, options))
        with invocation.control() as control:
            report = recover(
                opened,
                catalog,
                database,
                check_objects=check_objects,
                control=control,
                tell=losses.append,
            )
    if target.config is None:
        _write_configuration(target, report, is_sealed=catalog.objects.seal.key is not None)
    _print(invocation, target, report, losses, place)
    if losses:
        raise IntegrityError(
            f"{len(losses)} objects are missing, damaged or older than the index says, and are listed; "
            f"{report.versions} versions were recovered"
        )


def _target(invocation: Invocation, storage: str | None, to: str | None, options: dict[str, str | None]) -> _Target:
    from backyfs.config import find_config  # noqa: PLC0415
    from backyfs.engine.setup.initialize import (  # noqa: PLC0415 - SQLAlchemy is slow to load
        default_places,
        named_database,
    )
    from backyfs.errors import ConfigError  # noqa: PLC0415

    named = invocation.config_file or os.environ.get("BACKYFS_CONFIG") or None
    try:
        is_there = any(map(os.path.lexists, find_config(named, os.environ)))
    except ConfigError:
        is_there = False
    config = invocation.load_config() if is_there else None
    if storage is None and config is None:
        raise UsageError("there is no configuration that names the storage; name its directory")
    places = default_places(os.environ, as_root=os.geteuid() == 0, config_file=named)
    if storage is not None:
        places = replace(places, storage_path=os.path.abspath(storage))
    if to is not None:
        places = replace(places, database=named_database(to))
    elif config is not None:
        places = replace(places, database=config.database_url)
    return _Target(
        places=places,
        config=config,
        secret={f"encryption_{name}": _absolute(name, text) for name, text in options.items() if text is not None},
        storage_path=None if storage is None else places.storage_path,
    )


def _absolute(option: str, text: str) -> str:
    return os.path.abspath(text) if option.endswith("_file") else text


def _names_key(target: _Target, options: dict[str, str | None]) -> bool:
    """Tell whether options or configuration name what opens an encrypted repository."""
    config = target.config
    is_configured = (
        config is not None
        and config.encryption_version != 0
        and (config.key is not None or config.passphrase is not None)
    )
    return is_configured or any(text is not None for text in options.values())


def _asked(target: _Target, options: dict[str, str | None]) -> Callable[[OpenPart], Secret]:
    """Return what gives the key where one is needed: options, configuration, or somebody who is asked."""

    def ask(found: OpenPart) -> Secret:
        from backyfs.keys import expected_keys  # noqa: PLC0415 - cryptography is slow to load
        from backyfs.keys.slots import Secret  # noqa: PLC0415
        from backyfs.repository.keyring import configured_secret  # noqa: PLC0415

        secret = read_secret(**options)
        if secret is None and target.config is not None:
            secret = configured_secret(target.config)
        asker = asking()
        if secret is None and asker is not None and found.key_slots:
            secret = Secret(passphrase=asker())
        if secret is None:
            slots = expected_keys(list(found.key_slots)) or "the key that backy2 was configured with"
            raise MissingKeyError(
                f"the catalog of repository {found.uid} is encrypted, and opened by {slots}; name it with --key-file, "
                "--passphrase-file or --from-recovery"
            )
        return secret

    return ask


def _write_configuration(target: _Target, report: RecoveryReport, *, is_sealed: bool) -> None:
    from backyfs.engine.setup.initialize import write_configuration  # noqa: PLC0415 - SQLAlchemy is slow to load

    write_configuration(
        target.places,
        block_size=report.repository.identity.block_size,
        encryption_version=None if is_sealed else 0,
        secret=target.secret if is_sealed else {},
    )


def _print(
    invocation: Invocation, target: _Target, report: RecoveryReport, losses: list[Loss], place: str
) -> None:
    rows: list[Row] = [{"name": loss.name, "version": loss.version, "reason": loss.reason} for loss in losses]
    if invocation.form is OutputForm.JSON:
        row: Row = {
            "repository": report.repository.identity.uid,
            "database": place,
            "configuration": target.places.config_file if target.config is None else None,
            "versions": report.versions,
            "pages": report.pages,
            "blobs": report.blobs,
            "invalid": list(report.invalid),
            "index_number": None if report.index is None else report.index.number,
            "index_written_at": None if report.index is None else report.index.written_at,
            "unlisted": list(report.unlisted),
        }
        print_object(row, losses=rows)
        return
    if rows or invocation.form is OutputForm.PIPE:
        print_rows(invocation, rows, _COLUMNS)
    if invocation.form is OutputForm.PIPE:
        return
    click.echo(
        f"repository {report.repository.identity.uid}: {report.versions} versions with {report.blobs} stored blocks "
        f"are in {printable(place)}"
    )
    if report.index is not None:
        click.echo(
            f"The catalog's index is number {report.index.number}, written {report.index.written_at:%Y-%m-%d %H:%M:%S} "
            "UTC. If later commands have written to this repository, the storage is in an older state."
        )
    if report.unlisted:
        click.echo(
            f"{len(report.unlisted)} versions are not in the index: {', '.join(map(printable, report.unlisted))}. The "
            "last command was killed before it wrote the index, or they were removed and put back."
        )
    if report.invalid:
        click.echo(
            f"{len(report.invalid)} versions are invalid now, because they lack blocks. If what is listed can be found "
            "again, put it back and recover once more, into another database."
        )
    if target.config is None:
        click.echo(f"The configuration is {printable(target.places.config_file)}.")
    else:
        files = ", ".join(map(printable, target.config.files))
        click.echo(f"The configuration {files} was there and is as it was: compare [MetaBackend] and [DataBackend].")
    click.echo("`backyfs scrub --all` reads all blocks, and tells whether they are whole.")
