"""`backyfs key`: what opens the repository."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import print_object, print_rows
from backyfs.cli.passphrases import ask_new, asking, read_secret, secret_options
from backyfs.cli.stdout import run_for_output, stdout_file, sync_stdout
from backyfs.cli.text import printable
from backyfs.errors import KeyMaterialError, UsageError

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation
    from backyfs.cli.output import Row
    from backyfs.engine.secrets.keyslots import RepositoryKey
    from backyfs.keys.slots import Secret, SecretSources
    from backyfs.model import KeySlot

_COLUMNS = ("label", "kind", "kdf", "key_check", "created_at")
_MAX_PAGE = 1 << 16  # characters
_PAGE = """backyfs recovery page: keep it under lock and key, far from the backups.
Whoever has this page and the metadata can read all backups. It cannot be taken back.

repository {repository}
key check  {check}

{groups}
To use it, type the nine lines above, numbers and all, into a file, and run
    backyfs key add LABEL --from-recovery FILE
Letters may be small. A line with a mistake is named. O is 0, I and L are 1.
"""


@click.group("key")
def command() -> None:
    """Look after what opens the repository: keys, passphrases, recovery pages.

    The data of a repository is encrypted under its own key. Each key slot has that key wrapped in it, by a
    configured key or by a passphrase. LABEL is the name of a slot.
    """


@command.command("list")
@click.pass_obj
@run_for_output
def list_(invocation: Invocation) -> None:
    """List the key slots, the oldest first; no key is needed."""
    from backyfs.engine.secrets.keyslots import open_database, read_slots  # noqa: PLC0415 - SQLAlchemy is slow to load

    with open_database(invocation.load_config()) as database:
        slots = read_slots(database)
        invocation.note_odd_rows(database)
    print_rows(invocation, [_row(slot) for slot in slots], _COLUMNS)


@command.command()
@click.pass_obj
def check(invocation: Invocation) -> None:
    """Tell which slot the configuration opens; status 3 if none, 20 if the slot is damaged."""
    from backyfs.engine.secrets.keyslots import check_key, open_database  # noqa: PLC0415 - SQLAlchemy is slow to load

    with open_database(invocation.load_config()) as database:
        slot = check_key(database, _sources(invocation))
        invocation.note_odd_rows(database)
    _tell(invocation, slot, "The configuration opens slot")


@command.command()
@click.argument("label")
@secret_options()
@click.option(
    "--from-recovery",
    "recovery_file",
    metavar="FILE",
    help="Open the repository by a recovery page in FILE, - for stdin, and not by the configuration.",
)
@click.pass_obj
def add(invocation: Invocation, /, *, label: str, recovery_file: str | None, **options: str | None) -> None:
    """Let one more key or passphrase open the repository, by a new slot LABEL.

    Without an option a passphrase is asked for, twice.
    """
    from backyfs.engine.secrets import keyslots  # noqa: PLC0415 - SQLAlchemy is slow to load

    with keyslots.open_database(invocation.load_config()) as database:
        if recovery_file is None:
            slot = keyslots.add_slot(database, _sources(invocation), label, _new_secret(options))
        else:
            key = read_recovery_page(recovery_file)
            slot = keyslots.add_slot_from_recovery(database, key, label, _new_secret(options))
    invocation.keep_catalog()
    _tell(invocation, slot, "There is a new slot")


@command.command()
@click.argument("label")
@secret_options()
@click.pass_obj
def change(invocation: Invocation, /, *, label: str, **options: str | None) -> None:
    """Let another key or passphrase open slot LABEL; the old one opens it no longer.

    Without an option a passphrase is asked for, twice. The configuration has to open the repository as it is.
    """
    from backyfs.engine.secrets.keyslots import change_slot, open_database  # noqa: PLC0415 - SQLAlchemy is slow to load

    with open_database(invocation.load_config()) as database:
        slot = change_slot(database, _sources(invocation), label, _new_secret(options))
    invocation.keep_catalog()
    _tell(invocation, slot, "There is a new key or passphrase in slot")


@command.command()
@click.argument("label")
@click.option("--force", is_flag=True, help="Also the slot that this configuration opens.")
@click.pass_obj
def remove(invocation: Invocation, *, label: str, force: bool) -> None:
    """Remove slot LABEL: its key or passphrase opens the repository no longer. The last slot stays."""
    from backyfs.engine.secrets.keyslots import open_database, remove_slot  # noqa: PLC0415 - SQLAlchemy is slow to load

    with open_database(invocation.load_config()) as database:
        remove_slot(database, _sources(invocation), label, force=force)
    invocation.keep_catalog()
    if invocation.form is OutputForm.JSON:
        print_object({"label": label})
    elif invocation.form is OutputForm.TABLE:
        click.echo(f"Slot {printable(label)} is gone.")


@command.command()
@click.argument("file", metavar="FILE")
@click.pass_obj
def export(invocation: Invocation, file: str) -> None:
    """Write the key of the repository itself to FILE, as a recovery page that `key add --from-recovery` reads.

    Anyone who has FILE and the metadata can read all backups. FILE must not exist; only its owner can read it. With -
    the page goes to stdout, to be piped into another program, and nothing else is printed.
    """
    from backyfs.engine.transfer.export import new_file  # noqa: PLC0415 - SQLAlchemy is slow to load
    from backyfs.ownfiles import configured_own_paths  # noqa: PLC0415 - as above

    if file == "-":
        _export_to_stdout(invocation)
        return
    found = _repository_key(invocation)
    with new_file(file, configured_own_paths(invocation.load_config())) as page:
        page.write(_page(found).encode("ascii"))
    if invocation.form is OutputForm.JSON:
        print_object({"file": file, "repository": found.repository, "key_check": _check(found.key)})
    elif invocation.form is OutputForm.TABLE:
        click.echo(f"The recovery page is in {printable(file)}: keep it secret, and far from the backups.")


def _export_to_stdout(invocation: Invocation) -> None:
    if sys.stdout.isatty():
        raise UsageError("stdout is a terminal; `backyfs key print` shows the recovery page there")
    page = _page(_repository_key(invocation)).encode("ascii")
    with stdout_file() as file:
        file.write(page)


@command.command("print")
@click.pass_obj
@run_for_output
def print_(invocation: Invocation) -> None:
    """Print the key of the repository itself as a recovery page: nine groups to type, each with a checksum."""
    from backyfs.keys.recovery import write_groups  # noqa: PLC0415 - cryptography is slow to load

    found = _repository_key(invocation)
    if invocation.form is OutputForm.JSON:
        row: Row = {"repository": found.repository, "key_check": _check(found.key), "groups": write_groups(found.key)}
        print_object(row)
    else:
        click.echo(_page(found), nl=False)
    sync_stdout()


def _repository_key(invocation: Invocation) -> RepositoryKey:
    from backyfs.engine.secrets.keyslots import (  # noqa: PLC0415 - SQLAlchemy is slow to load
        open_database,
        repository_key,
    )

    with open_database(invocation.load_config()) as database:
        return repository_key(database, _sources(invocation))


def _page(found: RepositoryKey) -> str:
    from backyfs.keys.recovery import write_page  # noqa: PLC0415 - cryptography is slow to load

    return _PAGE.format(repository=found.repository, check=_check(found.key), groups=write_page(found.key))


def read_recovery_page(file: str) -> bytes:
    """Return the key of a repository from a file with a recovery page; - is stdin.

    Raises:
        KeyMaterialError: it cannot be read, or has a mistake.
    """
    from backyfs.keys.recovery import read_page  # noqa: PLC0415 - cryptography is slow to load

    if file == "-":
        return read_page(sys.stdin.read(_MAX_PAGE))
    try:
        with open(file, encoding="utf-8", errors="replace") as page:
            return read_page(page.read(_MAX_PAGE))
    except OSError as error:
        raise KeyMaterialError(f"recovery page {file} cannot be read: {error.strerror}; name another file") from error


def _new_secret(options: dict[str, str | None]) -> Secret:
    return read_secret(**options) or ask_new()


def _sources(invocation: Invocation) -> SecretSources:
    from backyfs.repository.keyring import key_sources  # noqa: PLC0415 - SQLAlchemy is slow to load

    return key_sources(invocation.load_config(), asking())


def _check(key: bytes) -> str:
    from backyfs.keys import key_check, show_check  # noqa: PLC0415 - cryptography is slow to load

    return show_check(key_check(key))


def _row(slot: KeySlot) -> Row:
    from backyfs import keys  # noqa: PLC0415 - cryptography is slow to load

    is_key = slot.kdf == keys.KDF_CONFIGURED_KEY
    return {
        "label": slot.label,
        "kind": "key" if is_key else "passphrase",
        "kdf": None if is_key else slot.kdf,
        "key_check": keys.show_check(slot.key_check),
        "created_at": slot.created_at,
    }


def _tell(invocation: Invocation, slot: KeySlot, words: str) -> None:
    row = _row(slot)
    if invocation.form is OutputForm.JSON:
        print_object(row)
    elif invocation.form is OutputForm.PIPE:
        print_rows(invocation, [row], _COLUMNS)
    else:
        click.echo(f"{words} {printable(slot.label)}: {row['kind']} {row['key_check']}.")
