"""URIs as the command line takes them: a path, or `SCHEME://REST`, where each scheme is implemented by one module.

The module of a scheme is imported when the scheme is used, so a command loads no client library it does not need.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Iterable

FILE = "file"  # the scheme of a plain path

_Opener = TypeVar("_Opener")


@dataclass(frozen=True, slots=True)
class Scheme(Generic[_Opener]):
    """What implements a scheme."""

    form: str    # how to write it, for messages: null://SIZE
    opener: str  # package.module:function

    def load(self) -> _Opener:
        """Import the module and return its function."""
        return cast("_Opener", pkgutil.resolve_name(self.opener))


def scheme_of(uri: str) -> str:
    """Return the scheme of a URI; `file` for anything else, which is a path."""
    scheme, separator, _ = uri.partition("://")
    return scheme if separator and scheme.isalnum() else FILE


def path_of(uri: str) -> str:
    """Return the path in `file://PATH`, or the path itself."""
    return uri.removeprefix(f"{FILE}://")


def list_forms(schemes: Iterable[Scheme[_Opener]]) -> str:
    """Return how to write each of these schemes, as a list in a sentence: a path, file://PATH or null://SIZE."""
    *others, last = ["a path", *(scheme.form for scheme in schemes)]
    return f"{', '.join(others)} or {last}"
