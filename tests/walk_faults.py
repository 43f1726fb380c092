"""The faults of Dataflow on a random walk: calls that fail, lose their answer, hide or say strange things."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlmodel import col, select

from service.local.faults import Fault
from service.models import Attempt
from tests.walk_world import WalkWorld

HIDDEN_SECONDS = 30  # well within the grace: what is hidden for longer cannot be told from what is not there
TRANSIENT = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNKNOWN", "ABORTED")
REFUSALS = ("INVALID_ARGUMENT", "PERMISSION_DENIED", "FAILED_PRECONDITION")
# A launch is made, and nothing shows it for a while.
LOST_AND_HIDDEN = [Fault("LaunchFlexTemplate", "UNAVAILABLE", after=True), Fault(hide="job")]
METHODS = ("LaunchFlexTemplate", "UpdateJob", "GetJob", "ListJobs", "*")


class WalkFaults:
    """The faults that are set now. What they hide is seen again in time, see HIDDEN_SECONDS."""

    def __init__(self, world: WalkWorld) -> None:
        self._world = world
        self._faults: list[Fault] = []
        self._hidden_until: datetime | None = None

    async def add(self) -> None:
        """A few calls to come fail, before or after they took effect, or do not see everything."""
        chance = self._world.chance
        method = chance.choice(METHODS)
        fault = Fault(method=method, code=chance.choice(TRANSIENT), times=chance.randint(1, 3))
        kind = chance.choice(("fail", "lose the answer", "refuse", "hide", "hide labels", "strange word"))
        if kind == "lose the answer":
            fault = replace_fault(fault, after=True)
        elif kind == "refuse":
            fault = Fault(method="LaunchFlexTemplate", code=chance.choice(REFUSALS), times=1)
            if chance.random() < 0.5:
                fault = Fault(method="UpdateJob", code="FAILED_PRECONDITION", times=2)
        elif kind in ("hide", "hide labels"):
            shown = chance.choice(("ListJobs", "GetJob", "*"))
            fault = Fault(method=shown, hide="job" if kind == "hide" else "labels")
        elif kind == "strange word":
            fault = Fault(
                method="GetJob", state=chance.choice(("77", "PAUSED", "STOPPED", "UNKNOWN")), times=3
            )
        faults = [*self._faults, fault][-3:]
        if not await self.may_hide():
            faults = [each for each in faults if not each.hide]
        self.set(faults)

    async def may_hide(self) -> bool:
        """Whether a new while of hiding may begin: what was hidden in the last one has been seen since."""
        unknown = col(Attempt.dataflow_job_id).is_(None) | (col(Attempt.missing_looks) > 0)
        waiting = select(Attempt).where(col(Attempt.ended_at).is_(None), unknown)
        async with self._world.database.session() as session:
            is_waiting = (await session.exec(waiting.limit(1))).first() is not None
        return any(each.hide for each in self._faults) or not is_waiting

    def end_in_time(self) -> None:
        """Ends them where something could have been hidden for long enough."""
        if self._hidden_until and self._world.now >= self._hidden_until:
            self.end()

    def end(self) -> None:
        self.set([])
        self._hidden_until = None

    def set(self, faults: list[Fault]) -> None:
        if faults:
            self._hidden_until = self._hidden_until or self._world.now + timedelta(seconds=HIDDEN_SECONDS)
        self._faults = faults
        self._world.server.faults.set(faults)


def replace_fault(fault: Fault, **members: Any) -> Fault:
    return msgspec.structs.replace(fault, **members)
