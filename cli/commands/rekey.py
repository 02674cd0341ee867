"""`backyfs rekey`: another configured key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import print_object, print_rows
from backyfs.cli.passphrases import ask_old, read_secret, secret_options
from backyfs.cli.text import printable
from backyfs.errors import UsageError

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation
    from backyfs.cli.output import Row
    from backyfs.keys.slots import Secret


@click.command("rekey")
@click.argument("old_key", metavar="[OLDKEY]", required=False)
@secret_options("old-")
@click.option(
    "--leave-damaged",
    is_flag=True,
    help="Repository of backy2: go on though some data keys are not opened by the old key, and leave these.",
)
@click.pass_obj
def command(invocation: Invocation, /, *, old_key: str | None, leave_damaged: bool, **options: str | None) -> None:
    """Let the key in the configuration open the repository, in the place of the old one.

    Write the new key to the configuration first. Without an option the old key is asked for. OLDKEY, 64 hex digits
    as with backy2, can be seen by others of this host in the list of processes.

    A repository of backy2 gets a key of its own, and all its data keys are wrapped anew: no other command may
    be running. Blocks are never written anew.
    """
    from backyfs import keys  # noqa: PLC0415 - SQLAlchemy and cryptography are slow to load
    from backyfs.engine.secrets.keyslots import open_database  # noqa: PLC0415
    from backyfs.engine.secrets.rekey import rekey  # noqa: PLC0415

    with open_database(invocation.load_config()) as database:
        report = rekey(invocation.load_config(), database, _old(old_key, options), leave_damaged=leave_damaged)
    invocation.keep_catalog()
    check = keys.show_check(report.slot.key_check)
    row: Row = {
        "slot": report.slot.label,
        "key_check": check,
        "rewrapped": report.rewrapped,
        "left": report.left,
        "changed": report.changed,
    }
    if invocation.form is OutputForm.JSON:
        print_object(row)
    elif invocation.form is OutputForm.PIPE:
        print_rows(invocation, [row], list(row))
    elif not report.changed:
        click.echo(f"The configured key opens slot {printable(report.slot.label)} already: {check}.")
    else:
        label = printable(report.slot.label)
        click.echo(f"The configured key opens slot {label} now: {check}; the old key no longer does.")
        if report.rewrapped:
            click.echo(f"{report.rewrapped} data keys were wrapped anew. Make exports of metadata anew as well.")


def _old(old_key: str | None, options: dict[str, str | None]) -> Secret:
    from backyfs import keys  # noqa: PLC0415 - cryptography is slow to load
    from backyfs.keys.slots import Secret  # noqa: PLC0415
    from backyfs.model import KeySource  # noqa: PLC0415

    named = read_secret(**{name.removeprefix("old_"): text for name, text in options.items()})
    if old_key is None:
        return named or ask_old()
    if named is not None:
        raise UsageError("OLDKEY and an option both name the old key; give one of them")
    return Secret(key=keys.read_key(KeySource(hex_digits=old_key)))
