"""All callers of one load: who sends when, over which connection, and what came of it.

Closed loop: each of `connections` callers sends its next request when it has the answer to the last, so a
slow service is asked less. Open loop (`rate`): requests are due at fixed moments whether or not the service
keeps up, and their latency counts from the moment that they were due: a stall is felt by all who would have
called meanwhile, not only by the one who was on the line (https://www.scylladb.com/glossary/coordinated-omission/).
"""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from service.load.connection import Connection
from service.load.samples import NO_ANSWER, Samples
from service.waking import woken

LEAST_PAUSE_SECONDS = 0.001  # the resolution of the event loop's timers
SWEEP_SECONDS = 0.05
REFUSED_PAUSE_SECONDS = 0.05

Render = Callable[[int], bytes]
Taken = Callable[[int, int, bytes, bool], None]
Last = Callable[[int], None]


@dataclass(frozen=True)
class Target:
    """Where the service is; `tls` checks its certificate against `host`."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True)
class Plan:
    """What to send: for `seconds` after `warm_up_seconds`, at most `requests` then (0: no such bound).

    `connections` are the callers of a closed loop; of an open one, with `rate` requests a second, the most
    connections. A request without an answer after `timeout_seconds` has failed.
    """

    connections: int
    seconds: float
    rate: float = 0.0
    requests: int = 0
    warm_up_seconds: float = 0.0
    timeout_seconds: float = 20.0


class Crowd:
    """One run; `render` makes the bytes of a request of a number, `taken` is told of each answer.

    `taken` gets the number, the status, the body, and whether the request counts (it does not while the
    run warms up). `last` is told the number of the request that fills the plan, before it is rendered.
    """

    def __init__(
        self,
        target: Target,
        plan: Plan,
        render: Render,
        taken: Taken | None = None,
        last: Last = lambda _: None,
    ) -> None:
        self.connections: set[Connection] = set()
        self.failures: Counter[str] = Counter()
        self.lag_seconds = 0.0  # how late the generator itself was at most
        self._target = target
        self._plan = plan
        self._render = render
        self._taken = taken
        self._last = last
        self._idle: list[Connection] = []
        self._opening: dict[asyncio.Task[None], tuple[int, float]] = {}
        self._next = 0
        self._first = math.ceil(plan.warm_up_seconds * plan.rate)  # that counts, of an open loop
        self._counted = 0
        self._under_way = 0
        self._started_at = 0.0
        self._until = 0.0
        self._samples = Samples()
        self._alarm: asyncio.Handle | None = None
        self._wanted_at = 0.0
        self._over = asyncio.Event()

    @property
    def sent(self) -> int:
        """How many requests were begun, those of the warm-up too."""
        return self._next

    async def run(self) -> Samples:
        """Carries out the plan and returns what was seen, at the latest a timeout after its end."""
        self._started_at = time.monotonic()
        self._samples.began = self._started_at + self._plan.warm_up_seconds
        self._until = self._samples.began + self._plan.seconds
        if self._plan.rate:
            self._pump()
        else:
            for _ in range(self._plan.connections):
                self._follow(None)
        last = self._until + self._plan.timeout_seconds
        while not self._over.is_set() and (now := time.monotonic()) < last:
            self._give_up_late_ones(now)
            is_done = now >= self._until or self._is_spent
            if is_done and not self._under_way and not self._in_line(now):
                break
            await woken(self._over, SWEEP_SECONDS)
        return self._ended()

    def stop(self) -> None:
        """Ends the run now; what is under way is left out."""
        self._over.set()

    def _ended(self) -> Samples:
        now = time.monotonic()
        self._samples.ended = max(self._samples.began, min(now, self._until))
        if self._is_spent and self._samples.at:
            self._samples.ended = min(self._samples.ended, max(self._samples.at))
        if not self._over.is_set():
            self._fail_the_rest(now)
            self._over.set()
        if self._alarm:
            self._alarm.cancel()
        for task in self._opening:
            task.cancel()
        for connection in list(self.connections):
            connection.index = -1
            connection.abort("the end")
        return self._samples

    def _fail_the_rest(self, now: float) -> None:
        """Notes what has had no answer by the last moment: in line, on its way to a connection, or sent."""
        while self._in_line(now):
            due_at = self._due_at(self._next)
            self._note_failure(self._take(due_at), due_at, "timeout")
        for task, (index, due_at) in self._opening.items():
            if not task.done():  # else it is among those that were sent
                self._note_failure(index, due_at, "timeout")
        for connection in self.connections:
            if connection.is_busy:
                self._note_failure(connection.index, connection.due_at, "timeout")

    @property
    def _is_spent(self) -> bool:
        return bool(self._plan.requests) and self._counted >= self._plan.requests

    def _may_begin(self, now: float) -> bool:
        return now < self._until and not self._is_spent and not self._over.is_set()

    # What connections tell

    def answered(self, connection: Connection, index: int, at: float, status: int, body: bytes) -> None:
        due_at = connection.due_at
        counts = due_at >= self._samples.began
        if counts:
            self._samples.add(at, at - due_at, status)
        if self._taken:
            self._taken(index, status, body, counts)
        self._under_way -= 1
        self._go_on(connection if connection.is_usable else None, at)

    def failed(self, index: int, due_at: float, cause: str) -> None:
        """Notes a request that has no answer."""
        if self._over.is_set():
            return
        self._under_way -= 1
        self._note_failure(index, due_at, cause)
        self._go_on(None, time.monotonic())

    def _note_failure(self, index: int, due_at: float, cause: str) -> None:
        counts = due_at >= self._samples.began
        if counts:
            self.failures[cause] += 1
            self._samples.add(time.monotonic(), 0.0, NO_ANSWER)
        if self._taken:
            self._taken(index, NO_ANSWER, b"", counts)

    def _go_on(self, connection: Connection | None, now: float) -> None:
        if self._plan.rate:
            if connection:
                self._idle.append(connection)
            if self._alarm is None or self._in_line(now):
                self._pump()
        else:
            self._follow(connection)

    # Closed loop

    def _follow(self, connection: Connection | None) -> None:
        """Sends a caller's next request, over its connection or a new one."""
        now = time.monotonic()
        if self._may_begin(now):
            self._begin(now, connection)

    # Open loop

    def _due_at(self, index: int) -> float:
        return self._started_at + index / self._plan.rate

    def _in_line(self, now: float) -> int:
        """How many requests are due and not sent."""
        if not self._plan.rate or self._over.is_set():
            return 0
        due = int((min(now, self._until) - self._started_at) * self._plan.rate) + 1
        if now >= self._until:  # the end itself is no moment of the run
            due = min(due, max(1, round((self._until - self._started_at) * self._plan.rate)))
        if self._plan.requests:
            due = min(due, self._first + self._plan.requests)
        return max(0, due - self._next)

    def _wake(self) -> None:
        """Called when a request is due, or a little later, which is the generator's own lag."""
        self._alarm = None
        if not self._over.is_set():
            self.lag_seconds = max(self.lag_seconds, time.monotonic() - self._wanted_at)
            self._pump()

    def _pump(self) -> None:
        """Sends what is due, as far as connections are free, and comes back when the next is due."""
        now = time.monotonic()
        for _ in range(self._in_line(now)):
            connection = None
            while self._idle and connection is None:
                connection = self._idle.pop()
                if not connection.is_usable:
                    connection = None
            if connection is None and self._under_way >= self._plan.connections:
                break  # the next answer brings us back
            self._begin(self._due_at(self._next), connection)
        if self._alarm:
            self._alarm.cancel()
            self._alarm = None
        if not self._in_line(now) and self._may_begin(now):
            wait = max(LEAST_PAUSE_SECONDS, self._due_at(self._next) - now)
            self._wanted_at = now + wait
            self._alarm = asyncio.get_running_loop().call_later(wait, self._wake)

    def _give_up_late_ones(self, now: float) -> None:
        """Fails what has had no answer for too long, and what has waited in line for so long."""
        limit = now - self._plan.timeout_seconds
        for connection in list(self.connections):
            if connection.is_busy and connection.due_at < limit:
                connection.abort("timeout")
        while self._in_line(now) and self._due_at(self._next) < limit:
            due_at = self._due_at(self._next)
            self._note_failure(self._take(due_at), due_at, "timeout")

    # Both

    def _take(self, due_at: float) -> int:
        """The number of the next request, which is due at this moment."""
        index, self._next = self._next, self._next + 1
        if due_at >= self._samples.began:
            self._counted += 1
            if self._counted == self._plan.requests:
                self._last(index)
        return index

    def _begin(self, due_at: float, connection: Connection | None) -> None:
        index = self._take(due_at)
        self._under_way += 1
        if connection:
            connection.send(index, due_at, self._render(index))
            return
        task = asyncio.get_running_loop().create_task(self._begin_anew(index, due_at))
        self._opening[task] = index, due_at
        task.add_done_callback(lambda done: self._opening.pop(done, None))

    async def _begin_anew(self, index: int, due_at: float) -> None:
        """Sends a request over a new connection."""
        target = self._target
        try:
            async with asyncio.timeout(due_at + self._plan.timeout_seconds - time.monotonic()):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self), target.host, target.port, ssl=target.tls
                )
        except (OSError, TimeoutError) as error:
            if not self._plan.rate:  # a closed loop would spin on a port where nobody listens
                await asyncio.sleep(REFUSED_PAUSE_SECONDS)
            self.failed(index, due_at, _cause(error))
        else:
            connection.send(index, due_at, self._render(index))


def _cause(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ssl.SSLError):
        return "TLS failed"
    return "timeout" if isinstance(error, TimeoutError) else "cannot connect"
