"""A man in the middle who pretends to be a database server, offers no TLS or another certificate, and listens."""

from __future__ import annotations

import socketserver
import ssl
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PATIENCE_S = 20
_MOST_BYTES = 65_536
# CLIENT_CONNECT_WITH_DB, CLIENT_PROTOCOL_41, CLIENT_SECURE_CONNECTION, CLIENT_PLUGIN_AUTH; and CLIENT_SSL.
_MARIADB_ABILITIES = 0x0008 | 0x0200 | 0x8000 | 0x0008_0000
_MARIADB_TLS = 0x0800
_MARIADB_TLS_REQUEST_BYTES = 36
_POSTGRESQL_TLS_REQUEST = bytes.fromhex("0000000804d2162f")


class Impostor(socketserver.ThreadingTCPServer):
    """Listens on `port`. Everything clients say in plain text, or in TLS that they accepted, is in `heard`."""

    def __init__(self, scheme: str, certificate: Path | None) -> None:
        super().__init__(("127.0.0.1", 0), _Conversation)
        self.port: int = self.server_address[1]
        self.scheme = scheme
        self.heard = bytearray()
        self.clients = 0
        self.tls: ssl.SSLContext | None = None
        if certificate is not None:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(certificate)


class _Conversation(socketserver.BaseRequestHandler):
    """Greets until the client identifies itself, then hangs up."""

    server: Impostor

    def handle(self) -> None:
        self.server.clients += 1
        self.request.settimeout(_PATIENCE_S)
        with suppress(OSError):  # a client that rejects the certificate
            if self.server.scheme == "mysql":
                self._greet_as_mariadb()
            else:
                self._greet_as_postgresql()

    def _greet_as_mariadb(self) -> None:
        abilities = _MARIADB_ABILITIES | (0 if self.server.tls is None else _MARIADB_TLS)
        greeting = (
            b"\x0a5.5.5-10.11.0-MariaDB\0" + bytes(4) + b"saltsalt\0" + abilities.to_bytes(4, "little")[:2]
            + b"\x2d\x02\x00" + abilities.to_bytes(4, "little")[2:] + b"\x15" + bytes(10) + b"saltsaltsalt\0"
            + b"mysql_native_password\0"
        )  # fmt: skip
        self.request.sendall(len(greeting).to_bytes(3, "little") + b"\0" + greeting)
        if self.server.tls is None:
            self._listen()
        else:
            self.server.heard += self.request.recv(_MARIADB_TLS_REQUEST_BYTES)
            self._listen_in_tls(self.server.tls)

    def _greet_as_postgresql(self) -> None:
        asked = self.request.recv(len(_POSTGRESQL_TLS_REQUEST))
        self.server.heard += asked
        if asked != _POSTGRESQL_TLS_REQUEST:
            self._listen()
        elif self.server.tls is None:
            self.request.sendall(b"N")
            self._listen()
        else:
            self.request.sendall(b"S")
            self._listen_in_tls(self.server.tls)

    def _listen(self) -> None:
        self.server.heard += self.request.recv(_MOST_BYTES)

    def _listen_in_tls(self, tls: ssl.SSLContext) -> None:
        with tls.wrap_socket(self.request, server_side=True) as protected:
            self.server.heard += protected.recv(_MOST_BYTES)


@contextmanager
def impostor(scheme: str, certificate: Path | None = None) -> Iterator[Impostor]:
    """Serve clients of `postgresql` or `mysql`; at the end, everything they said is in `heard`."""
    with Impostor(scheme, certificate) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
