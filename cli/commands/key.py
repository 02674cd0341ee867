"""`backyfs key`: the keys, passphrases and recovery pages that open the repository."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import print_object, print_report, print_rows
from backyfs.cli.passphrases import ask_new, asking, read_secret, secret_options
from backyfs.cli.stdout import run_for_output, stdout_file, sync_stdout
from backyfs.cli.text import printable
from backyfs.errors import KeyMaterialError, UsageError

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation
    from backyfs.engine.secrets.keyslots import RepositoryKey
    from backyfs.keys.slots import Secret, SecretSources
    from backyfs.model import KeySlot

_MAX_PAGE = 1 << 16  # characters
_PAGE = """backyfs recovery page: keep it under lock and key, far from the backups.
Anyone who has this page and the metadata can read all backups. It cannot be revoked.

repository {repository}
key check  {check}

{groups}
To use it, type the nine lines above, numbers and all, into a file, and run
    backyfs key add LABEL --from-recovery FILE
Lower case is fine. A line with a mistake is reported. O is 0, I and L are 1.
"""


@click.group("key")
def command() -> None:
    """Manage keys, passphrases and recovery pages, which open the repository.

    The data of a repository is encrypted under its own key. Each key slot contains that key, wrapped by a configured
    key or by a passphrase. LABEL is the name of a slot.
    """


@command.command("list")
@click.pass_obj
@run_for_output
def list_(invocation: Invocation) -> None:
    """List the key slots, the oldest first. No key is needed."""
    from backyfs.engine.secrets.keyslots import read_slots  # noqa: PLC0415 - SQLAlchemy is slow to load
    from backyfs.reports.key import COLUMNS, slot_row  # noqa: PLC0415 - as above

    with invocation.open_database() as database:
        slots = read_slots(database)
        invocation.service.note_odd_rows(database)
    print_rows(invocation, [slot_row(slot) for slot in slots], COLUMNS)


@command.command()
@click.pass_obj
def check(invocation: Invocation) -> None:
    """Show which slot the configuration opens; status 3 if none, 20 if the slot is damaged."""
    from backyfs.engine.secrets.keyslots import check_key  # noqa: PLC0415 - SQLAlchemy is slow to load

    with invocation.open_database() as database:
        slot = check_key(database, _sources(invocation))
        invocation.service.note_odd_rows(database)
    _print_slot(invocation, slot, "The configuration opens slot")


@command.command()
@click.argument("label")
@secret_options()
@click.option(
    "--from-recovery",
    "recovery_file",
    metavar="FILE",
    help="Open the repository with the recovery page in FILE, - for stdin, instead of the configuration.",
)
@click.pass_obj
def add(invocation: Invocation, /, *, label: str, recovery_file: str | None, **options: str | None) -> None:
    """Add a slot LABEL with another key or passphrase that opens the repository.

    Without an option, a passphrase is asked for, twice.
    """
    from backyfs.engine.secrets import keyslots  # noqa: PLC0415 - SQLAlchemy is slow to load

    with invocation.open_database() as database:
        if recovery_file is None:
            slot = keyslots.add_slot(database, _sources(invocation), label, _new_secret(options))
        else:
            key = read_recovery_page(recovery_file)
            slot = keyslots.add_slot_from_recovery(database, key, label, _new_secret(options))
    _print_slot(invocation, slot, "There is a new slot")


@command.command()
@click.argument("label")
@secret_options()
@click.pass_obj
def change(invocation: Invocation, /, *, label: str, **options: str | None) -> None:
    """Replace the key or passphrase of slot LABEL. The old one no longer opens it.

    Without an option, a passphrase is asked for, twice. The configuration has to open the repository as it is.
    """
    from backyfs.engine.secrets.keyslots import change_slot  # noqa: PLC0415 - SQLAlchemy is slow to load

    with invocation.open_database() as database:
        slot = change_slot(database, _sources(invocation), label, _new_secret(options))
    _print_slot(invocation, slot, "There is a new key or passphrase in slot")


@command.command()
@click.argument("label")
@click.option("--force", is_flag=True, help="Also remove the slot that this configuration opens.")
@click.pass_obj
def remove(invocation: Invocation, *, label: str, force: bool) -> None:
    """Remove slot LABEL. Its key or passphrase no longer opens the repository. The last slot cannot be removed."""
    from backyfs.engine.secrets.keyslots import remove_slot  # noqa: PLC0415 - SQLAlchemy is slow to load

    with invocation.open_database() as database:
        remove_slot(database, _sources(invocation), label, force=force)
    if invocation.form is OutputForm.JSON:
        print_object({"label": label})
    elif invocation.form is OutputForm.TABLE:
        click.echo(f"Slot {printable(label)} was removed.")


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
    from backyfs.reports.key import exported_as_object  # noqa: PLC0415 - as above

    if file == "-":
        _export_to_stdout(invocation)
        return
    found = _repository_key(invocation)
    with new_file(file, configured_own_paths(invocation.load_config())) as page:
        page.write(_page(found).encode("ascii"))
    if invocation.form is OutputForm.JSON:
        print_object(exported_as_object(file, found))
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
    from backyfs.reports.key import printed_as_object  # noqa: PLC0415 - cryptography is slow to load

    found = _repository_key(invocation)
    if invocation.form is OutputForm.JSON:
        print_object(printed_as_object(found))
    else:
        click.echo(_page(found), nl=False)
    sync_stdout()


def _repository_key(invocation: Invocation) -> RepositoryKey:
    from backyfs.engine.secrets.keyslots import repository_key  # noqa: PLC0415 - SQLAlchemy is slow to load

    with invocation.open_database() as database:
        return repository_key(database, _sources(invocation))


def _page(found: RepositoryKey) -> str:
    from backyfs.keys.recovery import write_page  # noqa: PLC0415 - cryptography is slow to load
    from backyfs.reports.key import check_of  # noqa: PLC0415 - as above

    return _PAGE.format(repository=found.repository, check=check_of(found), groups=write_page(found.key))


def read_recovery_page(file: str) -> bytes:
    """Return the key of a repository from a file with a recovery page; - is stdin.

    Raises:
        KeyMaterialError: the file cannot be read, or the page has a mistake.
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


def _print_slot(invocation: Invocation, slot: KeySlot, words: str) -> None:
    from backyfs.reports.key import COLUMNS, slot_row  # noqa: PLC0415 - cryptography is slow to load

    row = slot_row(slot)
    line = f"{words} {printable(slot.label)}: {row['kind']} {row['key_check']}."
    print_report(invocation, row, [line], COLUMNS)
