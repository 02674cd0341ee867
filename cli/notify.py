"""Tell the service manager how this process is: ready, stopping. Its protocol is that of sd_notify(3).

Whoever started the process names a datagram socket in NOTIFY_SOCKET; a path, or @ and an abstract name. Without
that nobody wants to know.
"""

from __future__ import annotations

import logging
import os
import socket

_log = logging.getLogger("backyfs.cli")
_PATIENCE_S = 5.0  # a manager that is busy lets the queue of its socket fill up


def notify(state: str) -> bool:
    """Send a state, such as `READY=1`, and return whether it was sent. Does not raise: no command ends of this."""
    address = os.fsencode(os.environ.get("NOTIFY_SOCKET", ""))
    if not address:
        return False
    if address.startswith(b"@"):
        address = b"\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.settimeout(_PATIENCE_S)
            channel.sendto(os.fsencode(state), address)
    except OSError as error:
        _log.warning("the service manager was not told %s: %s", state.partition("=")[0], error)
        return False
    return True
