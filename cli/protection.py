"""What `protect` and `unprotect` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.failures import raise_all
from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import print_rows
from backyfs.cli.text import printable
from backyfs.errors import VersionError
from backyfs.metadata.records.versions import find_version, set_protected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.cli.invocation import Invocation
    from backyfs.cli.output import Row


def change_protection(invocation: Invocation, names: Sequence[str], *, protected: bool) -> None:
    """Protect versions, or take their protection away, and tell it.

    Raises:
        VersionNotFoundError: one is not there; nothing was changed.
        VersionError: one was so already; the others were changed.
    """
    word = "protected" if protected else "unprotected"
    with invocation.open_repository() as repository, repository.database.write() as connection:
        found = {version.id: version for version in (find_version(connection, name) for name in names)}.values()
        changed = [version for version in found if set_protected(connection, version.id, protected=protected)]
    if invocation.form is OutputForm.JSON:
        rows: list[Row] = [{"uid": version.uid, "name": version.name, "protected": protected} for version in changed]
        print_rows(invocation, rows, ())
    elif invocation.form is OutputForm.TABLE:
        for version in changed:
            click.echo(f"version {version.uid} of {printable(version.name)} is {word}")
    already = [version.uid for version in found if version not in changed]
    raise_all([VersionError(f"version {uid} is {word} already; there was nothing to do") for uid in already])
