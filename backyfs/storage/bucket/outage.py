"""Whether an object store is away, and for how long its requests are repeated.

An outage ends when no request that failed is left. So one line in the log says when it was noticed and one when it
ended, however many requests wait, and also if the store refuses only some of them.
"""

from __future__ import annotations

import logging
import time
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

    from backyfs.config import ObjectStoreConfig
    from backyfs.errors import StorageAwayError

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.2  # before a request is repeated; doubles each time


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for a store, in seconds."""

    request_s: float = 30.0  # for one attempt, without the time for its bytes
    retry_s: float = 300.0  # for all attempts of one request
    first_s: float = 30.0  # the same, until the store has answered for the first time
    notice_s: float = 3.0  # before an outage is reported: a busy store refuses some requests all the time
    pause_s: float = _FIRST_PAUSE_S

    @classmethod
    def of(cls, config: ObjectStoreConfig) -> Self:
        """Return the patience that is configured. An outage is reported after a hundredth of it."""
        return cls(request_s=config.request_timeout, retry_s=config.retry_time, notice_s=config.retry_time / 100)


@dataclass(slots=True)
class Trial:
    """A request from the first attempt to the last one. Times are monotonic."""

    asked_s: float = field(default_factory=time.monotonic)
    began_s: float | None = None  # the first attempt; before, it waited for others
    is_failing: bool = False  # the last attempt failed


class Outage:
    """The current outage, if there is one. Owned by the event loop that sends the requests."""

    def __init__(self, place: str, patience: Patience) -> None:
        """Begin with a store that has not answered yet. `place` names it in messages."""
        self._place = place
        self._patience = patience
        self._failing = 0  # requests whose last attempt failed
        self._answered_s: float | None = None  # when the store answered last
        self._silent_since_s: float | None = None  # no attempt since then was answered
        self._reported_since_s: float | None = None  # when the outage began that the log reports
        self._given_up: tuple[float, StorageAwayError] | None = None  # when requests were given up, and why

    @property
    def patience_s(self) -> float:
        """How long a request is repeated."""
        longest_s = self._patience.retry_s
        return longest_s if self._answered_s is not None else min(self._patience.first_s, longest_s)

    def begin(self, trial: Trial) -> None:
        """Note the beginning of an attempt.

        Raises:
            StorageAwayError: others were given up while this one waited for its turn. It would fail like them, but
                much later.
        """
        if self._given_up is not None and trial.asked_s <= self._given_up[0]:
            raise copy(self._given_up[1])
        if trial.began_s is None:
            trial.began_s = time.monotonic()

    def remaining_s(self, trial: Trial, error: StorageAwayError) -> float:
        """Note that an attempt failed, and return for how long it may be repeated."""
        now_s = time.monotonic()
        began_s = now_s if trial.began_s is None else trial.began_s
        self._failing += not trial.is_failing
        trial.is_failing = True
        if self._silent_since_s is None:
            self._silent_since_s = max(began_s, self._answered_s or began_s)
        last_s = min(began_s, self._silent_since_s) + self.patience_s
        if now_s >= self._silent_since_s + self.patience_s:
            self._given_up = (now_s, error)
        elif now_s < last_s and now_s >= began_s + self._patience.notice_s and self._reported_since_s is None:
            self._reported_since_s = began_s
            _log.warning("%s; waiting up to %g s for it", error.statement, self.patience_s)
        return last_s - now_s

    def note_answer(self, trial: Trial) -> None:
        """Note that the store answered a request."""
        self.end(trial)
        self._answered_s = time.monotonic()
        self._silent_since_s = self._given_up = None
        if self._reported_since_s is not None and not self._failing:
            away_s = self._answered_s - self._reported_since_s
            self._reported_since_s = None
            _log.info("storage %s answers again after %.0f s", self._place, away_s)

    def end(self, trial: Trial) -> None:
        """Note that a request has ended, answered or not."""
        self._failing -= trial.is_failing
        trial.is_failing = False
