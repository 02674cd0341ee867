"""`backyfs rekey`: replace the key that opens the repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.output import print_report
from backyfs.cli.passphrases import ask_old, read_secret, secret_options
from backyfs.cli.text import printable
from backyfs.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.cli.invocation import Invocation
    from backyfs.engine.secrets.rekey import RekeyReport
    from backyfs.keys.slots import Secret


@click.command("rekey")
@click.argument("old_key", metavar="[OLDKEY]", required=False)
@secret_options("old-")
@click.option(
    "--leave-damaged",
    is_flag=True,
    help="Repository of backy2: continue even if the old key does not open some data keys, and leave these unchanged.",
)
@click.pass_obj
def command(invocation: Invocation, /, *, old_key: str | None, leave_damaged: bool, **options: str | None) -> None:
    """Replace the key that opens the repository by the key in the configuration.

    Write the new key to the configuration first. Without an option, the old key is asked for. OLDKEY, 64 hex digits as
    with backy2, is visible to other users of this host in the list of processes.

    A repository of backy2 gets a key of its own, and all of its data keys are wrapped again: no other command may be
    running. Blocks are never rewritten.
    """
    from backyfs.engine.secrets.rekey import rekey  # noqa: PLC0415 - SQLAlchemy is slow to load
    from backyfs.reports.rekey import as_object  # noqa: PLC0415 - cryptography is slow to load

    with invocation.open_database(resumes=True) as database:
        report = rekey(invocation.load_config(), database, _old(old_key, options), leave_damaged=leave_damaged)
    value = as_object(report)
    print_report(invocation, value, _lines(report, str(value["key_check"])))


def _lines(report: RekeyReport, check: str) -> Iterator[str]:
    label = printable(report.slot.label)
    if not report.changed:
        yield f"The configured key already opens slot {label}: {check}."
        return
    yield f"The configured key now opens slot {label}: {check}; the old key no longer does."
    if report.rewrapped:
        yield f"{report.rewrapped} data keys were wrapped again. Export the metadata again as well."


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
