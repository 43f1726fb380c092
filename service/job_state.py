"""The life of a job as pure functions: what an observation does to it, and what may be asked of it now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Literal

LAUNCHING = "LAUNCHING"  # the row exists, Dataflow's word is not known yet
REJECTED = "REJECTED"  # the launch was refused
LOST = "LOST"  # Dataflow denied the job for long enough
UNRECOGNIZED = "UNRECOGNIZED"  # Dataflow says a word that is not listed here

WAITING_STATES = frozenset({LAUNCHING, "STOPPED", "QUEUED", "PENDING"})
ENDING_STATES = frozenset({"DRAINING", "CANCELLING", "RESOURCE_CLEANING_UP"})
STEADY_STATES = frozenset({"RUNNING", "PAUSING", "PAUSED"})
DATAFLOW_TERMINAL = frozenset({"DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINED"})
TERMINAL_STATES = DATAFLOW_TERMINAL | {REJECTED, LOST}
DATAFLOW_STATES = (WAITING_STATES - {LAUNCHING}) | ENDING_STATES | STEADY_STATES | DATAFLOW_TERMINAL
STATES = DATAFLOW_STATES | {LAUNCHING, REJECTED, LOST, UNRECOGNIZED}

MEANINGS: dict[str, str] = {
    LAUNCHING: "the launch is committed, and what Dataflow says of it is not known yet",
    "STOPPED": "Dataflow has the job and has not started it",
    "QUEUED": "it waits for its start",
    "PENDING": "its workers are being started",
    "RUNNING": "it works",
    "PAUSING": "it is being paused",
    "PAUSED": "it is paused",
    "DRAINING": "it finishes what it has read",
    "CANCELLING": "it is being cancelled",
    "RESOURCE_CLEANING_UP": "it is ending",
    UNRECOGNIZED: "Dataflow says a word that this service does not know; nothing is done by itself",
    "DONE": "it ended by itself",
    "FAILED": "it broke; `cause` says why",
    "CANCELLED": "it was cancelled, or it was stopped before Dataflow had it",
    "UPDATED": "another job took its place that was not found, or that another job here manages",
    "DRAINED": "it ended and lost nothing",
    REJECTED: "the launch was refused or led to nothing of its own; `cause` says why",
    LOST: "Dataflow has denied the job for ten minutes",
}

Requested = Literal["RUNNING", "DRAINED", "CANCELLED"]
REQUESTED_ORDER: tuple[str, ...] = ("RUNNING", "DRAINED", "CANCELLED")

Action = Literal["drain", "cancel", "force_cancel", "update", "scale"]
StopAction = Literal["drain", "cancel"]
GOALS: dict[StopAction, Requested] = {"drain": "DRAINED", "cancel": "CANCELLED"}
_ON_THE_WAY: dict[StopAction, str] = {"drain": "DRAINING", "cancel": "CANCELLING"}
# Dataflow promises nothing for a force-cancel that comes earlier after the cancel.
FORCE_CANCEL_AFTER = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Transition:
    """What an observation does: the state from now on, and the state to ask Dataflow for, if any."""

    state: str
    changed: bool
    ended: bool
    send: Requested | None


class Verdict(StrEnum):
    """The answer to an action that is asked for."""

    ALLOWED = "allowed"
    ALREADY = "already"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Permission:
    """Whether an action is allowed now; `reason` says why not, and is empty where it is."""

    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """All of a job that decides what may be asked of it.

    `is_updating` says that a replacement is under way, `cancel_age` how long ago the cancel was asked
    for, and `is_forced` that it was asked for with force. `is_batch` says that it is no streaming job.
    """

    state: str
    requested: str
    is_updating: bool = False
    cancel_age: timedelta | None = None
    is_forced: bool = False
    is_batch: bool = False


_ALLOWED = Permission(Verdict.ALLOWED)
# Dataflow refuses each of them for a batch job, whatever its state.
_NO_BATCH: dict[Action, str] = {
    "drain": "A batch job cannot be drained: it ends by itself when all is read, or is cancelled.",
    "update": "A batch job cannot be updated: launch another one.",
    "scale": "The bounds of a batch job's workers cannot be changed: launch another one.",
}
_NO_DRAIN = {
    UNRECOGNIZED: "Dataflow reports a state that this service does not know.",
    "RESOURCE_CLEANING_UP": "The job is ending.",
}


def raised(current: str, wanted: str) -> str:
    """The higher of two requested states: RUNNING < DRAINED < CANCELLED."""
    return max(current, wanted, key=REQUESTED_ORDER.index)


def is_terminal(state: str) -> bool:
    return state in TERMINAL_STATES


def is_in_transition(state: str, requested: str) -> bool:
    """Whether the job is on its way to another state, so that a look at it alone is worth a call."""
    if is_terminal(state):
        return False
    return state not in STEADY_STATES or requested != "RUNNING"


def observe(state: str, requested: str, seen: str) -> Transition:
    """What follows when Dataflow says `seen` of a job in `state`.

    `seen` is Dataflow's word without its prefix, any text; `UNKNOWN` or nothing means that the answer
    carried no state. Total: every pair has a transition, terminal states absorb, and what is not
    listed becomes UNRECOGNIZED.
    """
    if is_terminal(state):
        return Transition(state, changed=False, ended=True, send=None)
    told = seen if seen in DATAFLOW_STATES else UNRECOGNIZED
    after = state if seen in ("", "UNKNOWN") else told
    return Transition(
        after, changed=after != state, ended=is_terminal(after), send=state_to_send(after, requested)
    )


def state_to_send(state: str, requested: str) -> Requested | None:
    """The state to ask Dataflow for now; None where nothing is wanted, or it is too early, or on its way.

    A drain waits until the job runs, because Dataflow refuses it before. Nothing automatic happens to
    an unrecognized state, but a cancel that a person asked for is sent.
    """
    if is_terminal(state) or state in ENDING_STATES - {"DRAINING"}:
        return None
    if requested == "CANCELLED":
        return "CANCELLED"
    if requested == "DRAINED" and state == "RUNNING":
        return "DRAINED"
    return None


def allowed_actions(standing: Standing) -> dict[Action, Permission]:
    """Every action with its permission: the one table that the routes answer from."""
    permissions = {action: rule(standing) for action, rule in _RULES.items()}
    if standing.is_batch and not is_terminal(standing.state):
        permissions |= {action: Permission(Verdict.REFUSED, why) for action, why in _NO_BATCH.items()}
    return permissions


def _ended(standing: Standing) -> Permission:
    return Permission(Verdict.REFUSED, f"The job has ended as {standing.state}.")


def _stop(action: StopAction, standing: Standing) -> Permission:
    state, goal = standing.state, GOALS[action]
    if state == goal:
        return Permission(Verdict.ALREADY, f"The job is {state} already.")
    if is_terminal(state):
        return _ended(standing)
    if action == "drain" and (standing.requested == "CANCELLED" or state == "CANCELLING"):
        refusal = "The job has been asked to cancel, which goes further than a drain."
        return Permission(Verdict.REFUSED, refusal)
    if standing.requested == goal or state == _ON_THE_WAY[action]:
        return Permission(Verdict.ALREADY, f"The job has been asked to {action} already.")
    if action == "drain" and state in _NO_DRAIN:
        return Permission(Verdict.REFUSED, _NO_DRAIN[state])
    return _ALLOWED


def _drain(standing: Standing) -> Permission:
    return _stop("drain", standing)


def _cancel(standing: Standing) -> Permission:
    return _stop("cancel", standing)


def _force_cancel(standing: Standing) -> Permission:
    if is_terminal(standing.state):
        if standing.state == "CANCELLED":
            return Permission(Verdict.ALREADY, "The job is CANCELLED already.")
        return _ended(standing)
    if standing.is_forced:
        return Permission(Verdict.ALREADY, "The job has been asked to cancel by force already.")
    if standing.cancel_age is None:
        return Permission(Verdict.REFUSED, "Cancel the job first; force is for a cancel that hangs.")
    if standing.cancel_age < FORCE_CANCEL_AFTER:
        minutes = FORCE_CANCEL_AFTER // timedelta(minutes=1)
        return Permission(
            Verdict.REFUSED, f"A cancel may be forced {minutes} minutes after it was asked for, not sooner."
        )
    return _ALLOWED


def _update(standing: Standing) -> Permission:
    if is_terminal(standing.state):
        return _ended(standing)
    if standing.requested != "RUNNING":
        return Permission(Verdict.REFUSED, f"The job has been asked to become {standing.requested}.")
    if standing.is_updating:
        return Permission(Verdict.REFUSED, "An update of the job is under way.")
    if standing.state != "RUNNING":
        return Permission(Verdict.REFUSED, f"Only a RUNNING job can be updated, not {standing.state}.")
    return _ALLOWED


def _scale(standing: Standing) -> Permission:
    if is_terminal(standing.state):
        return _ended(standing)
    if standing.requested != "RUNNING":
        return Permission(Verdict.REFUSED, f"The job has been asked to become {standing.requested}.")
    if standing.state not in WAITING_STATES | {"RUNNING"}:
        return Permission(
            Verdict.REFUSED, f"Only a job that runs or will run can be scaled, not {standing.state}."
        )
    return _ALLOWED


_RULES: dict[Action, Callable[[Standing], Permission]] = {
    "drain": _drain,
    "cancel": _cancel,
    "force_cancel": _force_cancel,
    "update": _update,
    "scale": _scale,
}
