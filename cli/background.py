"""Leave the terminal: what a process does that goes on in the background."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys

_SYSLOG = "/dev/log"


def detach() -> None:
    """Become a session of its own, without terminal and working directory; log to file or syslog only."""
    os.setsid()
    os.chdir("/")
    root = logging.getLogger("backyfs")
    for handler in list(root.handlers):
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
    if not root.handlers and os.path.exists(_SYSLOG):
        root.addHandler(logging.handlers.SysLogHandler(_SYSLOG))
    sys.stdout.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)
