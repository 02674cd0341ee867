"""An HTTP proxy on loopback in front of an object store, which delays, spoils and records requests.

It forwards what it gets byte by byte, with the Host header of the client, which is part of the signature. Each
connection of a client has a thread and a connection to the server.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.support.faults import Answer, Fault, Faults, Reset, Rule, Rules, Silence, Truncation
from tests.support.httpwire import MOST_READ, Head, Wire, has_body
from tests.support.requestlog import Request, RequestLog, Verb, verb_of
from tests.support.services.server import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import TypeGuard

    from backyfs.model import Buffer

_RESET = struct.pack("ii", 1, 0)  # of SO_LINGER: closing sends RST
_PARTS_PER_S = 50                 # of a body on a line of limited rate
_BACKLOG = 1024


class FaultProxy:
    """A proxy that runs until `close`. Any thread may use it."""

    def __init__(self, target: str, certificate: Path | None = None) -> None:
        """Forward to the server at a URL. With a certificate, clients connect by TLS."""
        parts = urlsplit(target)
        assert parts.hostname is not None
        assert parts.port is not None
        self._target = (parts.hostname, parts.port)
        self.rules = Rules()
        self.log = RequestLog()
        self.tls: ssl.SSLContext | None = None
        if certificate is not None:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(certificate)
        self._lock = threading.Lock()
        self._conversations: dict[threading.Thread, _Conversation] = {}
        [self.port] = free_ports(1)
        self._holder = _bound(self.port)  # keeps the port while the proxy refuses connections
        self._listener: socket.socket | None = None
        self.accept()

    @property
    def endpoint(self) -> str:
        """The URL of the proxy."""
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.port}"

    def add(
        self,
        fault: Fault,
        *,
        verbs: frozenset[Verb] = frozenset(Verb),
        path: str = "",
        times: int | None = None,
        after: int = 0,
    ) -> Rule:
        """Put a rule in force, behind the others."""
        return self.rules.add(Rule(fault, verbs, path, times, after))

    @contextmanager
    def during(self, fault: Fault, *, verbs: frozenset[Verb] = frozenset(Verb), path: str = "") -> Iterator[Rule]:
        """Put a rule in force for a while."""
        rule = self.add(fault, verbs=verbs, path=path)
        try:
            yield rule
        finally:
            self.rules.remove(rule)

    def accept(self) -> None:
        """Accept connections again."""
        assert self._listener is None
        self._listener = _bound(self.port)
        self._listener.listen(_BACKLOG)
        self._acceptor = threading.Thread(target=self._accept, args=[self._listener], daemon=True)
        self._acceptor.start()

    def refuse(self) -> None:
        """Refuse connections, and end the open ones."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the acceptor; closing alone does not
            self._acceptor.join()
            self._listener.close()
            self._listener = None
        with self._lock:
            conversations = dict(self._conversations)
        for conversation in conversations.values():
            conversation.abort()
        for thread in conversations:
            thread.join()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse connections for a while."""
        self.refuse()
        try:
            yield
        finally:
            self.accept()

    def close(self) -> None:
        """End all connections and their threads."""
        self.refuse()
        self._holder.close()

    def secured(self, connection: socket.socket) -> socket.socket:
        """Return the connection of a client, with TLS if that is used. The handshake comes later."""
        if self.tls is None:
            return connection
        return self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)

    def connect(self) -> socket.socket:
        """Return a connection to the server."""
        return socket.create_connection(self._target)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # it was shut down
            with suppress(OSError):  # the client has gone already
                self._begin(_Conversation(self, connection))

    def _begin(self, conversation: _Conversation) -> None:
        thread = threading.Thread(target=self._converse, args=[conversation], daemon=True)
        with self._lock:
            self._conversations[thread] = conversation
        thread.start()

    def _converse(self, conversation: _Conversation) -> None:
        try:
            with suppress(OSError, EOFError):  # one of the sides has gone
                conversation.run()
        finally:
            with self._lock:
                del self._conversations[threading.current_thread()]


class _CutError(Exception):
    """A fault lets no more of the body through."""


class _Conversation:
    """A connection of a client, and one to the server. It runs in a separate thread. Any thread may abort it."""

    def __init__(self, proxy: FaultProxy, connection: socket.socket) -> None:
        self._proxy = proxy
        self._client = Wire(proxy.secured(connection))
        self._server: Wire | None = None
        self._aborted = threading.Event()

    def run(self) -> None:
        """Serve the client until one side closes the connection, or a fault ends it."""
        try:
            if isinstance(self._client.socket, ssl.SSLSocket):
                self._client.socket.do_handshake()
            while (head := self._client.read_head()) is not None and self._serve(head):
                pass
        finally:
            self._client.socket.close()
            if self._server is not None:
                self._server.socket.close()

    def abort(self) -> None:
        """Wake the thread, whatever it waits for, and let it end."""
        self._aborted.set()
        for wire in (self._client, self._server):
            with suppress(OSError):
                if wire is not None:
                    wire.socket.shutdown(socket.SHUT_RDWR)

    def _serve(self, head: Head) -> bool:
        """Serve one request and return whether the connection is kept."""
        method, path, _ = head.first
        verb = verb_of(method, path, is_range=head.get("Range") is not None)
        with self._proxy.log.recorded(verb, method, path) as request:
            faults = self._proxy.rules.take(verb, path)
            if faults.delay_s and self._aborted.wait(faults.delay_s):
                return False
            match faults.ending:
                case Answer() as answer:
                    self._client.copy_body(head, lambda _part, _is_last: None, MOST_READ)
                    self._answer(request, answer)
                    return not head.ends_connection
                case Silence(body_bytes=None):
                    _wait_for_end(self._client.socket)
                    return False
                case Reset(forward=False):
                    self._reset(request)
                    return False
            is_whole = self._forward(request, head, faults)
            return self._pass_back(request, faults) and is_whole and not head.ends_connection

    def _forward(self, request: Request, head: Head, faults: Faults) -> bool:
        """Forward a request to the server; return whether the server took all of it."""
        server = self._connect()

        def pass_on(part: Buffer, is_last: bool) -> None:
            self._wait_for_lines(len(part), faults)
            try:
                server.socket.sendall(part)
            except OSError as error:
                raise _CutError from error
            request.body_bytes += len(part)

        server.socket.sendall(head.raw)
        try:
            self._client.copy_body(head, pass_on, _part_bytes(faults))
        except _CutError:
            return False
        return True

    def _connect(self) -> Wire:
        """Return the connection to the server, or another one if the server has closed it."""
        if self._server is not None and select.select([self._server.socket], [], [], 0)[0]:
            self._server.socket.close()
            self._server = None
        if self._server is None:
            self._server = Wire(self._proxy.connect())
        return self._server

    def _pass_back(self, request: Request, faults: Faults) -> bool:
        """Give the client as much of the answer as the faults allow; return whether the connection is kept."""
        assert self._server is not None
        ending = faults.ending
        head = self._server.read_head()
        if head is None:
            return False
        if isinstance(ending, Reset) and ending.body_bytes is None:
            self._reset(request)
            return False
        shown = head.with_length(ending.body_bytes) if _is_honest(ending) else head
        request.status = int(head.first[1])
        if not has_body(request.method, shown):
            self._proxy.log.end(request)
        self._client.socket.sendall(shown.raw)
        if not has_body(request.method, head):
            return not head.ends_connection
        return self._pass_body_back(self._server, head, request, faults) and not head.ends_connection

    def _pass_body_back(self, server: Wire, head: Head, request: Request, faults: Faults) -> bool:
        ending = faults.ending
        most = ending.body_bytes if isinstance(ending, Reset | Silence | Truncation) else None

        def pass_on(part: Buffer, is_last: bool) -> None:
            kept = part if most is None else memoryview(part)[: max(0, most - request.answer_bytes)]
            self._wait_for_lines(len(kept), faults)
            request.answer_bytes += len(kept)
            if is_last or (_is_honest(ending) and request.answer_bytes == most):
                self._proxy.log.end(request)
            self._client.socket.sendall(kept)
            if len(kept) < len(part) and not _is_honest(ending):
                raise _CutError

        try:
            server.copy_body(head, pass_on, _part_bytes(faults))
        except _CutError:
            if isinstance(ending, Reset):
                self._reset(request)
            elif isinstance(ending, Silence):
                _wait_for_end(self._client.socket)
            return False
        return True

    def _answer(self, request: Request, answer: Answer) -> None:
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{answer.code}</Code><Message>made by a test</Message><RequestId>0</RequestId></Error>"
        ).encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body))), *answer.headers]
        lines = [f"HTTP/1.1 {answer.status} {answer.code}", *(f"{name}: {value}" for name, value in headers), "", ""]
        shown = b"" if request.method == "HEAD" else body
        request.status = answer.status
        request.answer_bytes = len(shown)
        self._proxy.log.end(request)
        self._client.socket.sendall("\r\n".join(lines).encode() + shown)

    def _reset(self, request: Request) -> None:
        self._proxy.log.end(request)
        self._client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._client.socket.close()

    def _wait_for_lines(self, size: int, faults: Faults) -> None:
        for line in faults.lines:
            if self._aborted.wait(line.reserve(size)):
                raise EOFError


def _is_honest(fault: Fault | None) -> TypeGuard[Truncation]:
    return isinstance(fault, Truncation) and fault.honest


def _part_bytes(faults: Faults) -> int:
    return max(1, int(min([line.bytes_per_s / _PARTS_PER_S for line in faults.lines] + [MOST_READ])))


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


def _wait_for_end(connection: socket.socket) -> None:
    """Wait until the client closes its connection, or the conversation is aborted."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
    poll.poll()
