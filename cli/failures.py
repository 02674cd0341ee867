"""Several things failed that one command was to do: each is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.cli.logs import log_end
from backyfs.cli.remedies import render_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.errors import BackyfsError


def raise_all(errors: Sequence[BackyfsError]) -> None:
    """Raise the first of several errors of one class, after the others were told as `main` tells it.

    Raises:
        BackyfsError: the first; nothing where there is none.
    """
    for error in errors[1:]:
        log_end(render_error(error), error.exit_status)
    if errors:
        raise errors[0]
