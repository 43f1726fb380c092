"""kill -9 of `signin serve` at each named point of a launch, an update and a stop.

The point is reached by a fault that holds the call there. After the kill the call is let go, or never takes
effect, as the point says; then the same service starts again, or another replica goes on.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.local.dataflow import DataflowServer
from service.local.dataflow.fleet import Limits
from service.local.faults import Fault
from service.local.templates import Template
from tests.job_world import PARAMETERS, TEMPLATE
from tests.server_process import Server, service

DEADLINE_SECONDS = 30.0
GRACE_SECONDS = 2.0
OTHER_TEMPLATE = "gs://tests/waiting-2.json"


@dataclass(frozen=True)
class Point:
    """Where the process dies: `act` is under way, and the call that the faults hold is not answered.

    `then` are faults that are set right after the kill; `launched` is how many Dataflow jobs there have
    been in the end, and `history` kinds that are in it, in this order.
    """

    act: str
    hold: Fault
    launched: int
    history: tuple[str, ...]
    before: tuple[Fault, ...] = field(default=())


LAUNCH, UPDATE, GET, LIST = "LaunchFlexTemplate", "UpdateJob", "GetJob", "ListJobs"
LOST_ANSWER = Fault(LAUNCH, "UNAVAILABLE", times=1, after=True)
POINTS = {
    "launch: the call never arrives": Point(
        "launch", Fault(LAUNCH, hold=True), 1, ("created", "launch_started", "launch_started", "launched")
    ),
    "launch: it has taken effect, the answer is on its way": Point(
        "launch", Fault(LAUNCH, hold=True, after=True), 1, ("created", "launch_started", "adopted")
    ),
    "launch: it takes effect after the death": Point(
        "launch", Fault(LAUNCH, hold=True, late=True), 1, ("created", "launch_started", "adopted")
    ),
    "launch: the answer was lost and the job is looked for": Point(
        "launch",
        Fault(LIST, hold=True),
        1,
        ("created", "launch_started", "adopted"),
        (LOST_ANSWER,),
    ),
    "launch: the job was found and its token is asked for": Point(
        "launch",
        Fault(GET, hold=True),
        1,
        ("created", "launch_started", "adopted"),
        (LOST_ANSWER,),
    ),
    "update: the proof that there is a job to replace is asked for": Point(
        "update", Fault(GET, hold=True), 2, ("update_requested", "launch_started", "launched", "replaced")
    ),
    "update: the call never arrives": Point(
        "update",
        Fault(LAUNCH, hold=True),
        2,
        ("update_requested", "launch_started", "launch_started", "launched", "replaced"),
    ),
    "update: it has taken effect, the answer is on its way": Point(
        "update",
        Fault(LAUNCH, hold=True, after=True),
        2,
        ("update_requested", "launch_started", "adopted", "replaced"),
    ),
    "update: it takes effect after the death": Point(
        "update",
        Fault(LAUNCH, hold=True, late=True),
        2,
        ("update_requested", "launch_started", "adopted", "replaced"),
    ),
    "drain: the call never arrives": Point(
        "drain", Fault(UPDATE, hold=True), 1, ("drain_requested", "state")
    ),
    "drain: it has taken effect, the answer is on its way": Point(
        "drain", Fault(UPDATE, hold=True, after=True), 1, ("drain_requested", "state")
    ),
    "cancel: the call never arrives": Point(
        "cancel", Fault(UPDATE, hold=True), 1, ("cancel_requested", "state")
    ),
    "cancel: it has taken effect, the answer is on its way": Point(
        "cancel", Fault(UPDATE, hold=True, after=True), 1, ("cancel_requested", "state")
    ),
}
BRIEF = ("launch: it takes effect after the death", "update: it has taken effect, the answer is on its way")
ENDS = {"launch": "RUNNING", "update": "RUNNING", "drain": "DRAINED", "cancel": "CANCELLED"}


class Ground:
    """A Dataflow in this process, and services in processes of their own on one database."""

    def __init__(self, directory: Path, database_url: str, dataflow: DataflowServer) -> None:
        self.dataflow = dataflow
        self._directory = directory
        self._database_url = database_url
        self._numbers = iter(range(100))
        self._metadata = directory / "parameters.json"
        listed = ",".join(f'{{"name": "{name}", "isOptional": true}}' for name in PARAMETERS)
        self._metadata.write_text(f'{{"name": "waiting", "parameters": [{listed}]}}')

    @asynccontextmanager
    async def replica(self) -> AsyncIterator[Server]:
        directory = self._directory / f"replica-{next(self._numbers)}"
        directory.mkdir()
        server = service(
            directory,
            "127.0.0.1:1",
            database_url=self._database_url,
            DATAFLOW_EMULATOR_HOST=self.dataflow.address,
            SIGNIN_TEMPLATE_PATH=TEMPLATE,
            SIGNIN_TEMPLATE_METADATA=str(self._metadata),
            SIGNIN_ALLOWED_TEMPLATES=f'["{OTHER_TEMPLATE}"]',
            SIGNIN_RECONCILE_INTERVAL_SECONDS="0.1",
            SIGNIN_RECONCILE_LEASE_SECONDS="1",
            SIGNIN_LAUNCH_GRACE_SECONDS=str(GRACE_SECONDS),
            SIGNIN_DATAFLOW_DEADLINE_SECONDS="5",
        )
        await asyncio.to_thread(server.start)
        try:
            yield server
        finally:
            await asyncio.to_thread(server.kill)

    def active(self) -> list[str]:
        return [job.id for job in self.dataflow._fleet.active()]

    def launched(self) -> int:
        return len(self.dataflow._fleet.jobs)


@asynccontextmanager
async def ground(directory: Path, database_url: str) -> AsyncIterator[Ground]:
    templates = {TEMPLATE: Template("tests.waiting_job"), OTHER_TEMPLATE: Template("tests.waiting_job")}
    limits = Limits(close_grace_seconds=2.0)
    async with DataflowServer(directory / "dataflow", templates=templates, limits=limits) as dataflow:
        yield Ground(directory, database_url, dataflow)


async def ask(server: Server, method: str, path: str, body: Any = None) -> Any:
    async with httpx.AsyncClient(base_url=server.address, timeout=DEADLINE_SECONDS) as client:
        answer = await client.request(method, path, json=body)
    assert answer.is_success, answer.text
    return answer.json()


async def until(check: Callable[[], Awaitable[Any]]) -> Any:
    """Polls until the check gives something."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not (found := await check()):  # noqa: ASYNC110 - the state is another process's
            await asyncio.sleep(0.05)
    return found


async def until_state(server: Server, state: str, attempt: int = 1) -> dict[str, Any]:
    """The only job, once it is in `state` with the attempt of this number."""

    async def check() -> dict[str, Any] | None:
        [job] = (await ask(server, "GET", "/jobs"))["jobs"]
        whole = await ask(server, "GET", f"/jobs/{job['id']}")
        standing = [each["number"] for each in whole["attempts"] if each["dataflow_job_id"]]
        is_there = whole["state"] == state and standing and standing[-1] == attempt
        return (
            whole
            if is_there and whole["dataflow_job_id"] == whole["attempts"][-1]["dataflow_job_id"]
            else None
        )

    return await until(check)


async def begin(server: Server, act: str) -> Any:
    """Does the act; the process dies before it answers."""
    if act == "launch":
        return await ask(server, "POST", "/jobs", {})
    [job] = (await ask(server, "GET", "/jobs"))["jobs"]
    body = {"template_path": OTHER_TEMPLATE} if act == "update" else {}
    return await ask(server, "POST", f"/jobs/{job['id']}/{act}", body)


async def die_at(point: Point, ground: Ground, server: Server) -> None:
    """Leads the service to the point and kills it there."""
    faults = ground.dataflow.faults
    if point.act != "launch":
        await ask(server, "POST", "/jobs", {})
        await until_state(server, "RUNNING")
    faults.set([*point.before, point.hold])
    request = asyncio.create_task(begin(server, point.act))
    async with asyncio.timeout(DEADLINE_SECONDS):
        await faults.until_held(point.hold.method)
    await asyncio.to_thread(server.kill)
    await asyncio.gather(request, return_exceptions=True)
    faults.set([])


async def check(point: Point, ground: Ground, server: Server, history: Sequence[str] | None = None) -> None:
    """The job is where it was meant to go, there is one live Dataflow job or none, and the history tells."""
    expected = point.history if history is None else history
    is_update = point.act == "update"
    job = await until_state(server, ENDS[point.act], 2 if is_update else 1)
    goes_on = point.act in ("launch", "update")

    async def is_alone() -> bool:
        return ground.active() == ([job["dataflow_job_id"]] if goes_on else [])

    events: list[dict[str, Any]] = []

    async def is_told() -> bool:
        events[:] = (await ask(server, "GET", f"/jobs/{job['id']}/events"))["events"]
        kinds = iter([event["kind"] for event in events])
        return all(kind in kinds for kind in expected)

    await until(is_alone)
    assert ground.launched() == point.launched
    with suppress(TimeoutError):  # that an attempt was replaced is seen by a later look than its successor
        await until(is_told)
    assert await is_told(), [event["kind"] for event in events]
    assert sum(event["kind"] in ("launched", "adopted") for event in events) == point.launched


async def die_and_rise(point: Point, ground: Ground) -> None:
    async with ground.replica() as first:
        await die_at(point, ground, first)
    async with ground.replica() as second:
        await check(point, ground, second)


@pytest.fixture
def sqlite_url(tmp_path: Path, migrated_sqlite: Path) -> str:
    shutil.copyfile(migrated_sqlite, tmp_path / "signin.db")
    return f"sqlite:///{tmp_path / 'signin.db'}"


@pytest.mark.parametrize("name", BRIEF)
async def test_a_killed_service_goes_on_where_it_was(name: str, tmp_path: Path, sqlite_url: str) -> None:
    async with ground(tmp_path, sqlite_url) as world:
        await die_and_rise(POINTS[name], world)


@pytest.mark.soak
@pytest.mark.parametrize("name", POINTS)
async def test_a_kill_at_any_point_leaves_one_live_job(name: str, tmp_path: Path, database_url: str) -> None:
    async with ground(tmp_path, database_url) as world:
        await die_and_rise(POINTS[name], world)


@pytest.mark.soak
@pytest.mark.parametrize("name", POINTS)
async def test_of_two_replicas_the_other_one_goes_on(name: str, tmp_path: Path, postgres: Any) -> None:
    async with (
        ground(tmp_path, postgres.create(migrated=True)) as world,
        world.replica() as second,
        world.replica() as first,
    ):
        await die_at(POINTS[name], world, first)
        # The living one's tick may have been the first to launch what was committed.
        of_either = (kind for kind in POINTS[name].history if kind not in ("launched", "adopted"))
        await check(POINTS[name], world, second, tuple(dict.fromkeys(of_either)))
