"""The faults that only Dataflow has: jobs that are not visible yet, and states that nobody knows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from service.local.dataflow.job import LocalJob, State, now
from service.local.faults import Fault, FaultSwitch


class DataflowFaultSwitch(FaultSwitch):
    """A fault switch that can distort what is shown of the jobs."""

    shows_jobs = True

    def check(self, fault: Fault) -> None:
        """Raises ValueError where the fault makes no sense."""
        super().check(fault)
        if fault.state:
            state_number(fault.state)


def state_number(word: str) -> int:
    """The number of a state's name without prefix, or the number itself. Raises ValueError."""
    if word.isdecimal() and len(word) < 6:
        return int(word)
    try:
        return int(State[f"JOB_STATE_{word}"].value)
    except KeyError:
        raise ValueError(f"{word} is neither a state of Dataflow nor the number of one") from None


def is_hidden(job: LocalJob, faults: Iterable[Fault]) -> bool:
    """Whether one of the faults leaves the whole job out."""
    return any(fault.hide == "job" and _concerns(fault, job) for fault in faults)


def distort(shown: Any, job: LocalJob, faults: Iterable[Fault]) -> None:
    """Changes the job as it is shown."""
    for fault in faults:
        if _concerns(fault, job):
            if fault.hide == "labels":
                shown.ClearField("labels")
            if fault.state:
                shown.current_state = state_number(fault.state)


def _concerns(fault: Fault, job: LocalJob) -> bool:
    if fault.job not in ("", job.id, job.proto.name):
        return False
    age = (now() - job.proto.create_time.ToDatetime(now().tzinfo)).total_seconds()
    return not fault.younger_than_seconds or age < fault.younger_than_seconds
