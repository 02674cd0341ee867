"""Notify the service manager of the state of this process, with the protocol of sd_notify(3).

The service manager sets NOTIFY_SOCKET to a datagram socket: a path, or @ and an abstract name. Without it, nothing is
sent.
"""

from __future__ import annotations

import logging
import os
import socket

_log = logging.getLogger("backyfs.cli")
_PATIENCE_S = 5.0  # the socket's queue can be full while the manager is busy


def notify(state: str) -> bool:
    """Send a state, such as `READY=1`, and return whether it was sent. Never raises, so that no command fails here."""
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
        _log.warning("cannot notify the service manager of %s: %s", state.partition("=")[0], error)
        return False
    return True
