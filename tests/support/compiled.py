"""Statements that SQLAlchemy has compiled, shared by all engines of this process.

Each engine has such a cache, and a process of the program has one engine. A test opens a repository dozens of times,
and a quarter of its time went into compiling the same statements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, event

if TYPE_CHECKING:
    from sqlalchemy import Connection

_MOST = 2000  # statements; some belong to tables that only one test had


class _Compiled(dict[Any, Any]):
    """Does not distinguish the dialects of engines that talk to the same kind of database."""

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(_shared(key), default)

    def __setitem__(self, key: Any, compiled: Any) -> None:
        if len(self) >= _MOST:
            self.clear()
        super().__setitem__(_shared(key), compiled)


def _shared(key: tuple[Any, ...]) -> tuple[Any, ...]:
    dialect, *rest = key
    return (type(dialect), dialect.server_version_info, *rest)


def share_compiled_statements() -> None:
    """Make all engines created from now on share their compiled statements."""
    compiled = _Compiled()

    def connected(connection: Connection) -> None:
        connection.execution_options(compiled_cache=compiled)

    event.listen(Engine, "engine_connect", connected)
