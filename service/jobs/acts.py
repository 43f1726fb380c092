"""What may be asked of a job: drain, cancel, force-cancel, update, other bounds of its workers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import sqlalchemy.exc
from fastapi import APIRouter, Depends, Request, Response

from service import idempotency, job_store, problems
from service.auth import actor
from service.bodies import json_only
from service.dataflow import RefusedError
from service.errors import (
    ActionNotAllowedError,
    DatabaseUnavailableError,
    DataflowRefusedError,
    IdempotencyInFlightError,
    IdempotencyMismatchError,
    InvalidIdempotencyKeyError,
    InvalidParametersError,
    InvalidRequestError,
    JobNotFoundError,
    ProblemError,
    TemplateNotSetError,
    UnsupportedMediaTypeError,
)
from service.idempotency import KeyedRequest, Unfinished
from service.job_bodies import Drain, ForceCancel, JobUpdate, Scaling
from service.job_control import UpdateRequest
from service.job_request import require_parameters
from service.job_update import replacement
from service.job_view import JobView
from service.jobs.desk import (
    AtDesk,
    Desk,
    Key,
    answered,
    json_only_if_any,
    known,
    require_job_id,
)
from service.jobs.launch import busy_seconds, invalid_parameters
from service.problems import responses

router = APIRouter(prefix="/jobs")

Act = Callable[[Unfinished | None], Awaitable[Response]]
_TAKE_TRIES = 3


def _act(summary: str, *problems_: type[ProblemError], body_required: bool = True) -> dict[str, Any]:
    return {
        "status_code": 202,
        "response_model": JobView,
        "summary": summary,
        "dependencies": [Depends(json_only if body_required else json_only_if_any)],
        "responses": {
            200: {"model": JobView, "description": "It was so already."},
            **responses(
                JobNotFoundError,
                ActionNotAllowedError,
                InvalidRequestError,
                UnsupportedMediaTypeError,
                InvalidIdempotencyKeyError,
                IdempotencyInFlightError,
                IdempotencyMismatchError,
                DatabaseUnavailableError,
                *problems_,
            ),
        },
    }


@router.post("/{job_id}/drain", **_act("Drain a job", body_required=False))
async def drain_job(
    job_id: str, desk: AtDesk, key: Key, request: Request, asked: Drain | None = None
) -> Response:
    """Lets the job finish what it has read, and end. Asked for before it runs, it is kept until then.

    A batch job cannot be drained.
    """
    how = asked or Drain()

    async def act(_: Unfinished | None) -> Response:
        is_new = await desk.control.stop(
            job_id,
            "drain",
            actor(request),
            deadline_seconds=how.deadline_seconds,
            on_deadline=how.on_deadline,
        )
        return await asked_for(desk, job_id, is_new=is_new)

    return await once(desk, job_id, _keyed(key, request, how), act)


@router.post("/{job_id}/cancel", **_act("Cancel a job", body_required=False))
async def cancel_job(job_id: str, desk: AtDesk, key: Key, request: Request) -> Response:
    """Ends the job at once. What it had not acknowledged is delivered again to the next job."""

    async def act(_: Unfinished | None) -> Response:
        is_new = await desk.control.stop(job_id, "cancel", actor(request))
        return await asked_for(desk, job_id, is_new=is_new)

    return await once(desk, job_id, _keyed(key, request, None), act)


@router.post("/{job_id}/force-cancel", **_act("Cancel a job by force"))
async def force_cancel_job(
    job_id: str, asked: ForceCancel, desk: AtDesk, key: Key, request: Request
) -> Response:
    """Ends a job whose cancel has hung for 30 minutes. It may lose data, and leave resources behind."""

    async def act(_: Unfinished | None) -> Response:
        is_new = await desk.control.force_cancel(job_id, actor(request))
        return await asked_for(desk, job_id, is_new=is_new)

    return await once(desk, job_id, _keyed(key, request, asked), act)


@router.post(
    "/{job_id}/update",
    **_act("Update a job in place", InvalidParametersError, TemplateNotSetError, DataflowRefusedError),
)
async def update_job(job_id: str, asked: JobUpdate, desk: AtDesk, key: Key, request: Request) -> Response:
    """Replaces the running job by a new version of itself, which goes on with its state.

    The job goes on as it was until the replacement runs, and for good where that fails. A batch job
    cannot be updated.
    """

    async def act(unfinished: Unfinished | None) -> Response:
        if unfinished and await has_update_since(desk, job_id, unfinished):
            return await answered(desk, job_id, 202)
        refusal = await desk.control.update(job_id, await update_request(desk, job_id, asked), actor(request))
        desk.reconciler.wake()
        return refused(refusal, job_id, request) or await answered(desk, job_id, 202)

    return await once(desk, job_id, _keyed(key, request, asked), act)


@router.patch("/{job_id}/autoscaling", **_act("Change the bounds of a job's workers", DataflowRefusedError))
async def scale_job(job_id: str, asked: Scaling, desk: AtDesk, key: Key, request: Request) -> Response:
    """Sets the least and the most workers of a job; asked for before it runs, they are kept until then.

    Those of a batch job cannot be changed.
    """
    require_bounds(asked, desk.settings.max_workers)

    async def act(_: Unfinished | None) -> Response:
        refusal = await desk.control.scale(job_id, asked.min_workers, asked.max_workers, actor(request))
        desk.reconciler.wake()
        return refused(refusal, job_id, request) or await answered(desk, job_id, 202)

    return await once(desk, job_id, _keyed(key, request, asked), act)


async def once(desk: Desk, job_id: str, keyed: KeyedRequest | None, act: Act) -> Response:
    """The answer of `act`, or the stored one where the request was answered under its key before."""
    require_job_id(job_id)
    unfinished = None
    if keyed:
        earlier = await take(desk, keyed, job_id)
        if isinstance(earlier, Response):
            return earlier
        unfinished = earlier
    try:
        answer = await act(unfinished)
    except DatabaseUnavailableError:
        raise  # it may have happened: the key stays taken, and the next request finds out
    except ProblemError:
        await desk.answers.forget(keyed)
        raise
    await desk.answers.keep(keyed, answer, desk.clock())
    return answer


async def take(desk: Desk, keyed: KeyedRequest, job_id: str) -> Response | Unfinished | None:
    """Takes the key, as `idempotency.take`, in a transaction of its own."""
    for _ in range(_TAKE_TRIES):
        try:
            async with desk.database.transaction() as session:
                return await idempotency.take(
                    session, keyed, desk.clock(), busy_seconds=busy_seconds(desk), job_id=job_id
                )
        except sqlalchemy.exc.IntegrityError:
            continue  # another request took it at the same time
    raise IdempotencyInFlightError("It is not answered yet.", retry_after_seconds=1)


async def asked_for(desk: Desk, job_id: str, *, is_new: bool) -> Response:
    desk.reconciler.wake()
    return await answered(desk, job_id, 202 if is_new else 200)


async def update_request(desk: Desk, job_id: str, asked: JobUpdate) -> UpdateRequest:
    """The whole replacement, its parameters checked. Raises as a launch does."""
    job = (await known(desk, job_id)).job
    wanted, pipeline = replacement(asked, job, desk.settings)
    require_parameters(await desk.templates.find(pipeline), wanted.parameters)
    return wanted


async def has_update_since(desk: Desk, job_id: str, unfinished: Unfinished) -> bool:
    """Whether the request whose process ended had committed its update."""
    async with desk.database.session() as session:
        attempts = await job_store.attempts(session, job_id)
    return any(each.kind == "update" and each.created_at >= unfinished.since for each in attempts)


def refused(refusal: RefusedError | None, job_id: str, request: Request) -> Response | None:
    """Dataflow's refusal as a problem document, which is an answer like any other and is kept."""
    if refusal is None:
        return None
    problem: ProblemError = DataflowRefusedError(refusal.detail, members={"job_id": job_id})
    if refusal.violations:
        problem = invalid_parameters(refusal, job_id)
    return problems.answer_to(request.scope, problem)


def require_bounds(asked: Scaling, most: int) -> None:
    """Raises InvalidRequestError for bounds that no job may have here."""
    least, highest = asked.min_workers, asked.max_workers
    if least is None and highest is None:
        raise InvalidRequestError("body names neither min_workers nor max_workers.")
    if max(least or 0, highest or 0) > most:
        raise InvalidRequestError(f"At most {most} workers are allowed here (SIGNIN_MAX_WORKERS).")
    if least is not None and highest is not None and least > highest:
        raise InvalidRequestError(f"body.min_workers: there are at most {highest} (max_workers).")


def _keyed(key: str | None, request: Request, body: Any) -> KeyedRequest | None:
    return idempotency.keyed(key, f"{request.method} {request.url.path}", body, actor(request))
