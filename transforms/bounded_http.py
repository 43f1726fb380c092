"""A deadline for a whole HTTP call: that of `requests` begins anew with each byte that arrives."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Any, Self

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

_of_this_thread = threading.local()


class Deadline:
    """Breaks the connection of the call that its block makes, when so many seconds are over.

    The call is one of a session that has `BoundedAdapter`. `is_over` tells whether what the block raises
    comes of that.
    """

    def __init__(self, seconds: float) -> None:
        self.is_over = False
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        _of_this_thread.deadline = self
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        _of_this_thread.deadline = self._socket = None

    def watch(self, used: socket.socket) -> None:
        """Tells by which socket the call goes."""
        self._socket = used
        if self.is_over:
            self._break(used)

    def _end(self) -> None:
        self.is_over = True
        if used := self._socket:
            self._break(used)

    def _break(self, used: socket.socket) -> None:
        with suppress(OSError):
            socket.socket.shutdown(used, socket.SHUT_RDWR)  # not TLS's own, which another thread is using


class _Watched:
    sock: Any

    def send(self, data: Any) -> None:
        """Called with the head of a request first, which connects, and then with its body."""
        super().send(data)  # type: ignore[misc]
        if (deadline := getattr(_of_this_thread, "deadline", None)) and self.sock:
            deadline.watch(self.sock)


class _PlainConnection(_Watched, HTTPConnection):
    pass


class _TlsConnection(_Watched, HTTPSConnection):
    pass


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class BoundedAdapter(HTTPAdapter):
    """What a session is given for its calls to heed a `Deadline`."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Makes the pool of connections, as the base does."""
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _PlainPool, "https": _TlsPool}
