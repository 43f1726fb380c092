"""The end of a connection whose caller may still be sending."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.connections import Connection

LINGER_SECONDS = 2.0


def _dropped(data: bytes | bytearray | memoryview[Any]) -> None:
    """What nobody can be sent any more."""


class LingeringTransport:
    """A transport whose `close` lets the caller read the answer to a request that was not read to its end.

    Closing a socket that has unread bytes makes the kernel reset the connection, and the answer may be
    lost with it. So only our side is closed; what comes is thrown away, for `LINGER_SECONDS` at most.
    https://www.rfc-editor.org/rfc/rfc9112#section-9.6
    """

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport = transport
        self._connection = connection
        self._is_lingering = False
        # Bound here, so that the way of each answer is as short as it was.
        self.write = transport.write
        self.get_extra_info = transport.get_extra_info
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.abort = transport.abort
        self.get_write_buffer_size = transport.get_write_buffer_size

    def is_closing(self) -> bool:
        return self._is_lingering or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing() or not self._connection.has_unread_bytes:
            self._transport.close()
            return
        self._is_lingering = True
        self.write = _dropped  # an answer that is cut off goes on being written
        self._connection.discard_from_now_on()
        self._transport.write_eof()
        self._transport.resume_reading()
        self._connection.loop.call_later(LINGER_SECONDS, self._transport.close)
