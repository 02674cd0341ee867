"""The current tree: read again from the database in threads while somebody uses the mount.

Handlers get a tree that is at most a second old. While a mount is in use, a background task refreshes the tree, so no
handler waits for the database. If the database does not answer, handlers keep the last tree. Only one query runs at a
time, and no handler waits for it longer than two seconds.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from backyfs.errors import BackyfsError
from backyfs.metadata.records.versions import list_versions, listing_state
from backyfs.mount.tree import Tree

if TYPE_CHECKING:
    from backyfs.metadata.db.database import Database
    from backyfs.mount.pool import Call, Pool
    from backyfs.mount.selection import Selection

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """How old the tree may be, and how long readers wait for a newer one. In seconds."""

    fresh_s: float = 1.0     # how old the tree may be
    refresh_s: float = 0.5   # how often it is refreshed while somebody uses it
    in_use_s: float = 5.0    # how long after the last access the mount counts as in use
    patience_s: float = 2.0  # how long to wait for a slow database if there is an older tree


class LiveTree:
    """The versions that a mount shows, as a tree. Used by the tasks of one trio event loop."""

    def __init__(self, database: Database, selection: Selection, questions: Pool, freshness: Freshness) -> None:
        """Show the versions of a selection. Query the database in threads of `questions`."""
        self._freshness = freshness
        self._database = database
        self._selection = selection
        self._questions = questions
        self._query: Call[Tree] | None = None
        self._tree: Tree | None = None
        self._picture: object = None
        self._taken_at = float("-inf")
        self._asked_at = float("-inf")
        self._fails = False

    async def get(self) -> Tree:
        """Return the tree.

        Raises:
            DatabaseError: the database cannot be read, and has never been read before.
        """
        self._asked_at = time.monotonic()
        if self._tree is None:
            return await self._question().wait()
        if not self._fails and self._asked_at - self._taken_at > self._freshness.fresh_s:
            with trio.move_on_after(self._freshness.patience_s):
                await self._refresh()
        return self._tree

    async def keep_fresh(self) -> None:
        """Refresh the tree while it is in use. Run this as a separate task; it never returns."""
        while True:
            await trio.sleep(self._freshness.refresh_s)
            now = time.monotonic()
            is_old = now - self._taken_at > self._freshness.refresh_s
            if is_old and now - self._asked_at < self._freshness.in_use_s:
                await self._refresh()

    async def _refresh(self) -> None:
        try:
            await self._question().wait()
        except BackyfsError as error:
            if not self._fails and self._tree is not None:
                _log.warning("the mount shows the versions as they were: %s", error)
            self._fails = True

    def _question(self) -> Call[Tree]:
        """Return the running query, or start one."""
        if self._query is None:
            began = time.monotonic()

            def end(call: Call[Tree]) -> None:
                self._query = None
                if call.result is not None:
                    self._tree = call.result
                    self._taken_at = began
                    self._fails = False

            self._query = self._questions.start(self._read, end)
        return self._query

    def _read(self) -> Tree:
        with self._database.read() as connection:
            seen = listing_state(connection)
            now = datetime.now(UTC)
            if self._tree is not None and seen == self._picture and self._tree.is_true_at(now):
                return self._tree
            tree = Tree((version for version in list_versions(connection) if self._selection.has(version)), now)
        self._picture = seen
        return tree
