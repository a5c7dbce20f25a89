"""A proxy between PostgreSQL clients and servers that cuts connections at a message of the protocol.

Called by the tests of lost connections. It can also lead clients to one server after another, and be a pooler that
gives each transaction another connection, as pgbouncer does in its transaction mode.

One thread serves all connections. Clients come by TCP without encryption; servers are reached through their sockets.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import urllib.parse
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, TypeAlias

if TYPE_CHECKING:
    from types import TracebackType

_CANCEL_REQUEST = 80877102
_PATIENCE_SECONDS = 20
_LARGEST = 1 << 16


class Said(NamedTuple):
    """What a client is about to tell the server to do: run a statement."""

    text: str
    is_inside: bool  # in a transaction


Rule: TypeAlias = Callable[[Said], bool]
When: TypeAlias = Literal["before", "after"]


def commits(said: Said) -> bool:
    """A COMMIT, or a statement that commits itself."""
    word = said.text.split(maxsplit=1)[0].upper()
    return word == "COMMIT" if said.is_inside else word not in ("BEGIN", "SELECT", "EXPLAIN", "SHOW")


def says(text: str) -> Rule:
    """A statement with this text in it."""
    return lambda said: text in said.text


class _Stream:
    """Bytes on their way in one direction, taken apart into messages."""

    def __init__(self, *, has_first: bool) -> None:
        self._rest = b""
        self._is_first = has_first

    def messages(self, read: bytes) -> list[tuple[str, bytes]]:
        self._rest += read
        found: list[tuple[str, bytes]] = []
        while True:
            start = 0 if self._is_first else 1
            if len(self._rest) < start + 4:
                return found
            end = start + int(struct.unpack_from("!i", self._rest, start)[0])
            if len(self._rest) < end:
                return found
            found.append(("" if self._is_first else chr(self._rest[0]), self._rest[:end]))
            self._rest = self._rest[end:]
            self._is_first = False


class _Link:
    """One client, and its connections to servers: one, or as many as a pooler changes between."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.servers: list[socket.socket] = []
        self.current = 0
        self.from_client = _Stream(has_first=True)
        self.from_server: dict[socket.socket, _Stream] = {}
        self.is_ready: set[socket.socket] = set()
        self.is_inside = False
        self.is_muted = False
        self._prepared: dict[bytes, str] = {}
        self._bound = ""

    def said(self, kind: str, body: bytes) -> Said | None:
        """What this message has the server run."""
        if kind == "P":
            name, text = body.split(b"\0")[:2]
            self._prepared[name] = text.decode()
        elif kind == "B":
            self._bound = self._prepared[body.split(b"\0")[1]]
        elif kind == "Q":
            return Said(body[:-1].decode(), self.is_inside)
        elif kind == "S" and self._bound:
            bound, self._bound = self._bound, ""
            return Said(bound, self.is_inside)
        return None


def _socket_of(dsn: str) -> str:
    parts = urllib.parse.urlsplit(dsn)
    return f"{urllib.parse.unquote(parts.hostname or '')}/.s.PGSQL.{parts.port}"


class Proxy:
    """Listens on 127.0.0.1 and leads clients to servers. A context manager.

    `route` has URLs of servers, with their sockets, and may be changed at any time. New connections go to one after
    the other, and the last one takes all that follow. `pooling` gives each transaction another connection.
    """

    def __init__(self, *route: str, pooling: int = 1) -> None:
        self.route = list(route)
        self.connections = 0
        self.cuts = 0
        self._pooling = pooling
        self._links: dict[socket.socket, _Link] = {}
        self._rule: tuple[Rule, When, int] | None = None
        self._lock = threading.Lock()
        self._are_cut = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._waker, self._woken = socket.socketpair()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="proxy")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._waker.send(b"!")
        self._thread.join()
        for link in set(self._links.values()):
            self._close(link)
        for other in (self._listener, self._waker, self._woken):
            other.close()
        self._selector.close()

    @property
    def dsn(self) -> str:
        port = self._listener.getsockname()[1]
        return f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable&gssencmode=disable"

    def cut_at(self, rule: Rule, when: When = "before", *, times: int = 1) -> None:
        """Cut the next connection whose client says what the rule wants, or the next few.

        `before` the server hears of it, or `after` it has done it, and before the client hears of that.
        """
        with self._lock:
            self._rule = (rule, when, times)

    def cut_all(self) -> None:
        """Cut every connection there is, and come back when that is done."""
        self._are_cut.clear()
        self._waker.send(b"x")
        assert self._are_cut.wait(_PATIENCE_SECONDS)

    # ---- its thread

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    if b"!" in self._woken.recv(100):
                        return
                    for link in set(self._links.values()):
                        self._close(link)
                    self._are_cut.set()
                elif key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._links:
                    self._serve(key.fileobj, self._links[key.fileobj])

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = _Link(client)
        self._links[client] = link
        self._selector.register(client, selectors.EVENT_READ)
        self.connections += 1
        server = self.route.pop(0) if len(self.route) > 1 else self.route[0]
        for _ in range(self._pooling):
            upstream = socket.socket(socket.AF_UNIX)
            try:
                upstream.connect(_socket_of(server))
            except OSError:
                upstream.close()
                self._close(link)
                return
            link.servers.append(upstream)
            link.from_server[upstream] = _Stream(has_first=False)
            self._links[upstream] = link
            self._selector.register(upstream, selectors.EVENT_READ)

    def _serve(self, sender: socket.socket, link: _Link) -> None:
        try:
            read = sender.recv(_LARGEST)
        except OSError:
            read = b""
        if not read:
            self._close(link)
            return
        try:
            if sender is link.client:
                self._from_client(link, read)
            else:
                self._from_server(sender, link, read)
        except OSError:
            self._close(link)

    def _from_client(self, link: _Link, read: bytes) -> None:
        for kind, message in link.from_client.messages(read):
            if not kind:
                is_cancel = struct.unpack_from("!i", message, 4)[0] == _CANCEL_REQUEST
                for server in link.servers[:1] if is_cancel else link.servers:
                    server.sendall(message)
                continue
            said = link.said(kind, message[5:])
            when = self._cut(said) if said is not None else ""
            if when == "before":
                self._close(link)
                return
            link.is_muted |= when == "after"
            link.servers[link.current].sendall(message)

    def _cut(self, said: Said) -> When | Literal[""]:
        with self._lock:
            if self._rule is None or not self._rule[0](said):
                return ""
            rule, when, times = self._rule
            self._rule = (rule, when, times - 1) if times > 1 else None
            self.cuts += 1
            return when

    def _from_server(self, server: socket.socket, link: _Link, read: bytes) -> None:
        for kind, message in link.from_server[server].messages(read):
            is_greeting = server not in link.is_ready
            if kind == "Z":
                link.is_ready.add(server)
                link.is_inside = message[5:6] != b"I"
                if link.is_muted:
                    self._close(link)
                    return
            if is_greeting and server is not link.servers[0]:
                continue  # the client is greeted once
            if not link.is_muted:
                link.client.sendall(message)
            if kind == "Z" and not link.is_inside and not is_greeting:
                # The others have been ready for long; a transaction is over, and the next one goes elsewhere.
                link.current = (link.current + 1) % len(link.servers)

    def _close(self, link: _Link) -> None:
        for end in (link.client, *link.servers):
            if self._links.pop(end, None) is not None:
                self._selector.unregister(end)
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            end.close()
