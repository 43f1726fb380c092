"""The trailers of a request: the header lines that may follow the last chunk of its body.

Nobody here asks for one, so none is kept, and none can add to the headers that the request came with. Their
bytes are counted, also those of a line that does not end, which the parser holds until it does.
https://www.rfc-editor.org/rfc/rfc9112#section-7.1.2
"""

from __future__ import annotations

_LINE_BYTES = 4  # of a line, besides its name and its value


class Trailers:
    """Counts the bytes of one connection's trailers.

    The parser tells of the size of each chunk, but not what it is: what follows one is trailers unless it
    is the chunk's data.
    """

    __slots__ = ("_ended", "_unended", "may_come")

    def __init__(self) -> None:
        self.may_come = False  # after the size of a chunk, until its data has come or the body ends
        self._ended = 0  # bytes of the lines that are whole
        self._unended = 0  # bytes of the last one, as long as it is not

    def begin(self) -> None:
        self.may_come = True
        self._ended = self._unended = 0

    def add(self, name: bytes, value: bytes) -> int:
        """Counts a line that is whole and returns the bytes so far."""
        self._unended = 0
        self._ended += len(name) + len(value) + _LINE_BYTES
        return self._ended

    def rest(self, data: bytes) -> int:
        """Counts the line that has not ended with `data`, the latest bytes, and returns the bytes so far."""
        last = len(data) - data.rfind(b"\n") - 1  # a line of the parser's ends nowhere else
        self._unended = self._unended + last if last == len(data) else last
        return self._ended + self._unended
