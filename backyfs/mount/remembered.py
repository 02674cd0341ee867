"""Facts about versions that took time to find out, kept in memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

from backyfs.model import VersionStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from backyfs.model import Version

_CAPACITY = 4096  # facts

_Fact = TypeVar("_Fact")


class Remembered(Generic[_Fact]):
    """Facts about versions; the oldest ones are dropped first. Used by the tasks of one trio event loop."""

    def __init__(self) -> None:
        self._facts: OrderedDict[Hashable, _Fact] = OrderedDict()

    async def get(self, version: Version, which: Hashable, find_out: Callable[[], Awaitable[_Fact]]) -> _Fact:
        """Return a fact. An incomplete version may have changed, so its facts are not kept."""
        key = (version.uid, which)
        if key in self._facts:
            return self._facts[key]
        fact = await find_out()
        if version.status is not VersionStatus.INCOMPLETE:
            self._facts[key] = fact
            if len(self._facts) > _CAPACITY:
                self._facts.popitem(last=False)
        return fact
