"""A fault proxy in a separate process, for measurements: its work counts neither as time nor as CPU of this process."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.support.faultproxy import FaultProxy
from tests.support.faults import Rule

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from typing import Self

    from tests.support.requestlog import Verb


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What went through a proxy."""

    counts: Counter[Verb]
    most_in_flight: int
    body_bytes: int    # that clients sent
    answer_bytes: int  # that clients were given


class SeparateProxy:
    """A proxy that runs until `close`, or until this process ends. One thread may use it at a time."""

    def __init__(self, target: str) -> None:
        """Forward to the server at a URL."""
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(target, other), daemon=True)
        self._process.start()
        other.close()
        self.endpoint: str = self._connection.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_rules(self, *rules: Rule) -> None:
        """Put these rules in force, and no others."""
        self._ask("set_rules", rules)

    def take_traffic(self) -> Traffic:
        """Return what went through since the beginning, or since this was last called."""
        traffic = self._ask("take_traffic")
        assert isinstance(traffic, Traffic)
        return traffic

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()

    def _ask(self, *question: Any) -> Any:
        self._connection.send(question)
        return self._connection.recv()


def _serve(target: str, connection: Connection) -> None:
    proxy = FaultProxy(target)
    connection.send(proxy.endpoint)
    with suppress(EOFError, KeyboardInterrupt):  # the other process has closed its end, or was interrupted
        while True:
            match connection.recv():
                case ("set_rules", rules):
                    proxy.rules.clear()
                    for rule in rules:
                        proxy.rules.add(rule)
                    connection.send(None)
                case ("take_traffic",):
                    log = proxy.log
                    connection.send(Traffic(
                        counts=log.counts, most_in_flight=log.most_in_flight, body_bytes=log.body_bytes,
                        answer_bytes=log.answer_bytes,
                    ))  # fmt: skip
                    log.clear()
    proxy.close()
