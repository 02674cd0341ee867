"""One server for all processes of a test run: the first that needs it starts it, and ends it after all others.

If the process that started it is killed, the server ends too, and the next process that needs one starts another.
"""

from __future__ import annotations

import fcntl
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tests.support.services.objectstore import S3Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import IO

    from tests.support.services.objectstore import ObjectStoreServer


@contextmanager
def shared(kind: type[ObjectStoreServer], directory: Path) -> Iterator[S3Server]:
    """Yield the server of this kind for a directory, which all processes share.

    Raises:
        ServerMissingError: it is not installed.
    """
    # These locks belong to a process: its children do not hold them, and none outlives it. They are always taken in
    # this order. `owner` is held by the process that started the server, as long as the server runs.
    users, turn, owner = (directory / f"{kind.name}.{role}" for role in ("users", "turn", "owner"))
    note = directory / f"{kind.name}.endpoint"
    with open(users, "a+b") as using, open(owner, "a+b") as owning, ExitStack() as stack:
        fcntl.lockf(using, fcntl.LOCK_SH)
        with open(turn, "a+b") as waiting:
            fcntl.lockf(waiting, fcntl.LOCK_EX)
            if _taken(owning):
                note.write_text(stack.enter_context(kind()).endpoint)
                stack.callback(fcntl.lockf, using, fcntl.LOCK_EX)  # before it ends, wait for the others
        yield S3Server(name=kind.name, endpoint=note.read_text())


def _taken(file: IO[bytes]) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
