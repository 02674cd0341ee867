"""Prevent core files, because they would contain the keys in memory."""

from __future__ import annotations

import resource


def leave_no_core_file() -> None:
    """Prevent core files of this process and of processes that it starts.

    `PR_SET_DUMPABLE` would not do: it makes /proc/self inaccessible to users other than root, and the mount needs it.
    Child processes can raise their limit again, because the hard limit is unchanged.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
