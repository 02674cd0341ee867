"""`backyfs protect`: keep versions from being removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import versions_argument
from backyfs.cli.edits import change_protection

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation


@click.command()
@versions_argument
@click.pass_obj
def command(invocation: Invocation, versions: tuple[str, ...]) -> None:
    """Keep each VERSION from being removed, until it is unprotected.

    A VERSION that is already protected is an error, with status 4; the others are protected all the same.
    """
    change_protection(invocation, versions, protected=True)
