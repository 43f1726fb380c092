"""Token buckets, one for each caller and class of routes, and the headers that tell of them.

The headers are those of https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/ (its tenth
version), which gives each policy a name, a quota `q` for a window of `w` seconds, what remains of it `r`,
and the seconds `t` until it is whole again.
"""

from __future__ import annotations

import math

from service.config import Settings
from service.errors import RateLimitedError

Headers = tuple[tuple[bytes, bytes], ...]

WINDOW_SECONDS = 10
MOST_BUCKETS = 10_000
BATCH_PATH = "/events/signin/batch"
SINGLE_PATH = "/events/signin"


class Bucket:
    """What one caller may still do; refilled as time goes by, up to its capacity."""

    __slots__ = ("at", "tokens")

    def __init__(self, tokens: float, at: float) -> None:
        self.tokens = tokens
        self.at = at

    def take(self, now: float, rate: float, capacity: float) -> bool:
        """Takes one token at `now` (seconds, monotonic), if there is a whole one; `rate` come each second."""
        self.tokens = min(capacity, self.tokens + (now - self.at) * rate)
        self.at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class Policy:
    """The quota of one class of routes; a rate of 0 is none."""

    def __init__(self, name: str, rate: float) -> None:
        self.name = name
        self.rate = rate
        self.capacity = max(1.0, rate * WINDOW_SECONDS)
        self._buckets: dict[str, Bucket] = {}
        quota = f'"{name}";q={int(self.capacity)};w={WINDOW_SECONDS}'
        self._header = (b"ratelimit-policy", quota.encode())
        self._remaining = f'"{name}";r=%d;t=%d'.encode()

    def take(self, caller: str, now: float) -> Headers:
        """The headers for a request that may pass. Raises RateLimitedError."""
        if not self.rate:
            return ()
        bucket = self._buckets.get(caller)
        if bucket is None:
            if len(self._buckets) >= MOST_BUCKETS:
                del self._buckets[next(iter(self._buckets))]
            bucket = self._buckets[caller] = Bucket(self.capacity, now)
        if not bucket.take(now, self.rate, self.capacity):
            raise self._exceeded(bucket)
        return self._told(bucket)

    def _told(self, bucket: Bucket) -> Headers:
        whole_in = math.ceil((self.capacity - bucket.tokens) / self.rate)
        return self._header, (b"ratelimit", self._remaining % (bucket.tokens, whole_in))

    def _exceeded(self, bucket: Bucket) -> RateLimitedError:
        return RateLimitedError(
            f"This key may make {self.rate:g} such requests a second; it has made more.",
            retry_after_seconds=max(1, math.ceil((1.0 - bucket.tokens) / self.rate)),
            members={"violated-policies": [self.name]},
            headers={name.decode(): value.decode() for name, value in self._told(bucket)},
        )


class RateLimits:
    """The policies of one process."""

    def __init__(self, settings: Settings) -> None:
        self._control = Policy("control", settings.control_requests_per_second)
        self._by_path = {
            SINGLE_PATH: Policy("events", settings.event_requests_per_second),
            BATCH_PATH: Policy("batches", settings.batch_requests_per_second),
        }

    def take(self, caller: str, path: str, now: float) -> Headers:
        """The headers for a request of `caller` to `path`. Raises RateLimitedError."""
        return self._by_path.get(path, self._control).take(caller, now)
