"""Core files, which would hold the keys that are in memory."""

from __future__ import annotations

import resource


def leave_no_core_file() -> None:
    """Let a crash of this process, or of one that it starts, leave no core file.

    Not by `PR_SET_DUMPABLE`: it takes /proc/self from users other than root, and with it what the mount looks up
    there. Programs that are started can set their limit again, up to what it was allowed to be before.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
