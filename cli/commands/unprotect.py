"""`backyfs unprotect`: let versions be removed again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import versions_argument
from backyfs.cli.protection import change_protection

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation


@click.command()
@versions_argument
@click.pass_obj
def command(invocation: Invocation, versions: tuple[str, ...]) -> None:
    """Let each VERSION be removed again.

    One that is not protected is an error, with status 4; the others are unprotected all the same.
    """
    change_protection(invocation, versions, protected=False)
