"""The kinds of targets, by the scheme of their URI. To add one, see docs/internals/add-a-source.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from backyfs.errors import TargetError
from backyfs.schemes import Scheme, list_forms, scheme_of

if TYPE_CHECKING:
    from backyfs.config import Config
    from backyfs.targets.protocol import Destination

STDOUT = "-"


class DestinationFinder(Protocol):
    """A function that looks up the destinations of one scheme."""

    def __call__(self, uri: str, config: Config | None) -> Destination:
        """Look up what `uri` names, with the limits of `config`; see `find_destination`."""
        ...


TARGETS: dict[str, Scheme[DestinationFinder]] = {
    "file": Scheme("file://PATH", "backyfs.targets.file:find_file"),
    "null": Scheme("null://", "backyfs.targets.null:find_null"),
    STDOUT: Scheme("- for stdout", "backyfs.targets.stream:find_stdout"),
}


def find_destination(uri: str, config: Config | None = None) -> Destination:
    """Look up where to write an image: a path, `file://PATH`, a block device, `null://`, or `-` for stdout.

    Nothing is opened or changed. `config` limits simultaneous writes; without it, they are not limited. To stdout
    there is only one write at a time anyway.

    Raises:
        TargetError: it is of an unknown kind, or cannot be examined.
    """
    name = STDOUT if uri == STDOUT else scheme_of(uri)
    scheme = TARGETS.get(name)
    if scheme is None:
        raise TargetError(
            f"targets of kind {name}:// are not known", subject=f"{uri}:", remedy=f"give {list_forms(TARGETS.values())}"
        )
    return scheme.load()(uri, config)
