"""The tree as it is now: taken anew from the database, off the event loop, as long as somebody looks at it.

What a handler gets is at most a second old. While a mount is in use it is kept fresh in the background, so
that no handler waits for the database. Where the database does not answer, the last picture goes on.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from backyfs.errors import BackyfsError
from backyfs.metadata.versions import list_versions, picture
from backyfs.mount.tree import Tree

if TYPE_CHECKING:
    from backyfs.metadata.database import Database
    from backyfs.mount.pool import Pool
    from backyfs.mount.selection import Selection

_FRESH_S = 1.0     # how old the tree may be
_REFRESH_S = 0.5   # how often it is taken anew while somebody looks at it
_IN_USE_S = 5.0    # after the last look

_log = logging.getLogger(__name__)


class LiveTree:
    """The versions that a mount shows, as a tree."""

    def __init__(self, database: Database, selection: Selection, questions: Pool) -> None:
        """Show the versions of a selection; ask the database in threads of `questions`."""
        self._database = database
        self._selection = selection
        self._questions = questions
        self._lock = trio.Lock()
        self._tree: Tree | None = None
        self._picture: object = None
        self._taken_at = float("-inf")
        self._asked_at = float("-inf")
        self._fails = False

    async def get(self) -> Tree:
        """Return the tree.

        Raises:
            DatabaseError: it cannot be read, and never could.
        """
        self._asked_at = time.monotonic()
        if self._tree is not None and self._asked_at - self._taken_at <= _FRESH_S:
            return self._tree
        return await self._refresh(_FRESH_S)

    async def keep_fresh(self) -> None:
        """Take the tree anew, again and again, while it is in use. To be run as a task of its own."""
        while True:
            await trio.sleep(_REFRESH_S)
            if time.monotonic() - self._asked_at < _IN_USE_S:
                with suppress(BackyfsError):  # whoever asks is told
                    await self._refresh(_REFRESH_S)

    async def _refresh(self, age_s: float) -> Tree:
        async with self._lock:
            if self._tree is not None and time.monotonic() - self._taken_at <= age_s:
                return self._tree  # another one who waited has done it
            began = time.monotonic()
            try:
                tree = await self._questions.run(self._take)
            except BackyfsError as error:
                if self._tree is None:
                    raise
                if not self._fails:
                    _log.warning("the versions are shown as they were: %s", error)
                self._fails = True
                tree = self._tree
            else:
                self._fails = False
            self._tree = tree
            self._taken_at = began
            return tree

    def _take(self) -> Tree:
        with self._database.read() as connection:
            seen = picture(connection)
            if self._tree is not None and seen == self._picture:
                return self._tree
            tree = Tree(version for version in list_versions(connection) if self._selection.has(version))
        self._picture = seen
        return tree
