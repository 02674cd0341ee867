"""The list of measures. A measure is a function that takes a Bench and returns results."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.figures import Result
from benchmarks.images import Images
from benchmarks.program import Program
from benchmarks.references import References
from benchmarks.runner import Runner
from benchmarks.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Everything that a measure works with."""

    workspace: Workspace
    runner: Runner
    images: Images
    program: Program
    references: References
    repeat: int


Take = Callable[[Bench], list[Result]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A measure with its name for `--only`."""

    name: str
    summary: str
    take: Take
    peers: bool    # measures other programs, so only on request


class Registry:
    """Measures in the order in which they are taken."""

    def __init__(self) -> None:
        self._measures: dict[str, Measure] = {}

    def measure(self, name: str, summary: str, *, peers: bool = False) -> Callable[[Take], Take]:
        """Add the decorated function; a duplicate name is a mistake."""

        def add(take: Take) -> Take:
            if name in self._measures:
                raise ValueError(f"there are two measures named {name}")
            self._measures[name] = Measure(name=name, summary=summary, take=take, peers=peers)
            return take

        return add

    def __iter__(self) -> Iterator[Measure]:
        return iter(self._measures.values())


REGISTRY = Registry()
