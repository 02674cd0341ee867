"""Figures and how they are judged: samples, targets, results. Values only; report.py renders them."""

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

MIB = 1 << 20


class Better(enum.Enum):
    """Which of several samples counts."""

    LEAST = "least"
    MOST = "most"


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The results of repeated runs of one side, in the order in which they were taken."""

    label: str
    unit: str
    values: tuple[float, ...]
    counts: Better

    @property
    def value(self) -> float:
        """The sample that counts."""
        return min(self.values) if self.counts is Better.LEAST else max(self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A bound for the value of a result."""

    relation: str
    bound: float

    def reached(self, value: float) -> bool:
        compare: dict[str, Callable[[float, float], bool]] = {
            ">=": lambda left, right: left >= right,
            "<=": lambda left, right: left <= right,
            "<": lambda left, right: left < right,
        }
        return compare[self.relation](value, self.bound)

    def __str__(self) -> str:
        return f"{self.relation} {self.bound:g}"


def at_least(bound: float) -> Target:
    return Target(relation=">=", bound=bound)


def at_most(bound: float) -> Target:
    return Target(relation="<=", bound=bound)


def less_than(bound: float) -> Target:
    return Target(relation="<", bound=bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One line of the report: our value, or its ratio to a reference; without a target, for information."""

    measure: str
    what: str
    ours: Samples
    reference: Samples | None = None
    target: Target | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return None if self.reference is None else self.ours.value / self.reference.value

    @property
    def reached(self) -> bool | None:
        """Whether the ratio, or without a reference the value, keeps the target; None without a target."""
        if self.target is None:
            return None
        return self.target.reached(self.ours.value if self.ratio is None else self.ratio)


def rates(label: str, size_bytes: int, seconds: Iterable[float]) -> Samples:
    """Turn the seconds of each run into MiB/s."""
    values = tuple(size_bytes / MIB / taken_s for taken_s in seconds)
    return Samples(label=label, unit="MiB/s", values=values, counts=Better.MOST)


def alternate(repeat: int, *sides: Callable[[], float]) -> list[list[float]]:
    """Run the sides in turns, `repeat` times each, so a machine that becomes slower affects all of them."""
    samples: list[list[float]] = [[] for _ in sides]
    for _ in range(repeat):
        for side, values in zip(sides, samples, strict=True):
            values.append(side())
    return samples


def least(label: str, unit: str, values: Sequence[float]) -> Samples:
    """Return samples of which the least counts."""
    return Samples(label=label, unit=unit, values=tuple(values), counts=Better.LEAST)


def most(label: str, unit: str, values: Sequence[float]) -> Samples:
    """Return samples of which the greatest counts."""
    return Samples(label=label, unit=unit, values=tuple(values), counts=Better.MOST)
