"""Several things failed in one command: each is reported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.cli.logs import log_end
from backyfs.cli.remedies import render_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.errors import BackyfsError


def raise_all(errors: Sequence[BackyfsError]) -> None:
    """Raise the last of several errors, after the others were logged in the way in which `main` logs that one.

    Raises:
        BackyfsError: the last one, if there is any.
    """
    for error in errors[:-1]:
        log_end(render_error(error), error.exit_status)
    if errors:
        raise errors[-1]
