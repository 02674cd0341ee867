"""`backyfs unprotect`: allow versions to be removed again."""

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
    """Allow each VERSION to be removed again.

    A VERSION that is not protected is an error, with status 4; the others are unprotected all the same.
    """
    change_protection(invocation, versions, protected=False)
