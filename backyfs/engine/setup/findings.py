"""The findings of the checks of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backyfs.remedies import Remedy


class Grade(Enum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"  # another one has to succeed first


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found."""

    check: str
    grade: Grade
    message: str
    remedy: Remedy | None = None
    exit_status: int = 0  # of the command, if this is the first that failed

    def __str__(self) -> str:
        return self.message if self.remedy is None else f"{self.message}; {self.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What all checks found."""

    findings: tuple[Finding, ...]

    @property
    def exit_status(self) -> int:
        """The exit status of the first check that failed; 0: none did."""
        return next((one.exit_status for one in self.findings if one.grade is Grade.FAILED), 0)
