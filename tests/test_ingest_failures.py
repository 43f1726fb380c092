"""What happens to sign-ins when their last home fails: Pub/Sub is away and the database cannot be written.

The service runs in a process of its own, as in production. No answer is 2xx unless its event is in the
outbox, every answer comes in bounded time, memory stays flat, and all is well again without a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import sqlite3
import subprocess
import tempfile
import time
from pathlib import Path

import httpx
import psycopg
import pytest

from service.config import Settings
from service.db import migrate
from service.local.faults import Fault, set_faults
from tests.outbox_table import waiting_ids, waiting_rows
from tests.postgres import Postgres
from tests.pubsub_topic import make_topic, pull_all
from tests.running import DATE, until
from tests.server_process import local_pubsub, service
from tests.serving import JSON, NOBODY
from tests.soak import kill_rounds

pytestmark = [pytest.mark.soak, pytest.mark.timeout(240)]
ANSWER_SECONDS = 20.0  # the publish deadline, the wait for a connection, one statement
RECOVERY_SECONDS = 20.0
FLOOD = 300
GROWTH_BYTES = 60 << 20
PATIENT = httpx.Timeout(ANSWER_SECONDS + 10)


def post(client, number):
    body = b'{"userid": "u", "date": "%s", "event_id": "e-%d"}' % (DATE.encode(), number)
    return client.post("/events/signin", content=body, headers=JSON)


def memory(server):
    """Resident bytes of the service."""
    return sum(
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        for pid in server.pids()
    )


class Witness:
    """Sends events to a service, and knows which of them were answered with 2xx."""

    def __init__(self, server):
        self._server = server
        self._sent = 0
        self.promised = set()

    def one(self):
        with httpx.Client(base_url=self._server.address, timeout=PATIENT) as client:
            self._sent += 1
            return self._note(f"e-{self._sent}", post(client, self._sent))

    def flood(self):
        """Sends many at once; returns their answers, and how long the slowest took."""

        async def send():
            limits = httpx.Limits(max_connections=FLOOD)
            async with httpx.AsyncClient(
                base_url=self._server.address, timeout=PATIENT, limits=limits
            ) as client:
                numbers = range(self._sent + 1, self._sent + FLOOD + 1)
                self._sent += FLOOD
                return zip(numbers, await asyncio.gather(*(post(client, n) for n in numbers)), strict=True)

        return [self._note(f"e-{number}", answer) for number, answer in asyncio.run(send())]

    def _note(self, event_id, answer):
        if answer.is_success:
            assert answer.json()["event_id"] == event_id
            self.promised.add(event_id)
        return answer


def assert_refused_and_then_taken(server, begin, end, *, waiting):
    """The test itself: `begin` makes the trouble, `end` ends it, `waiting` tells what is in the outbox."""
    witness = Witness(server)
    assert witness.one().json()["status"] == "spooled"
    before = memory(server)
    begin()
    try:
        started = time.monotonic()
        answers = witness.flood()
        assert time.monotonic() - started < ANSWER_SECONDS
        refused = [answer for answer in answers if not answer.is_success]
        assert refused
        assert {answer.status_code for answer in refused} == {503}, refused[0].text
        assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
        assert memory(server) - before < GROWTH_BYTES
        assert httpx.get(f"{server.address}/healthz", timeout=5).status_code == 200
    finally:
        end()
    until(lambda: witness.one().is_success, RECOVERY_SECONDS)
    assert witness.promised <= waiting()


@contextlib.contextmanager
def without_pubsub(directory, database_url="", **values):
    """A service whose Pub/Sub is away, so that every event has to go into the outbox."""
    values = {"SIGNIN_PUBLISH_DEADLINE_SECONDS": "5", **values}
    with service(directory, NOBODY, database_url=database_url, **values) as server:
        yield server


def test_on_a_full_disk_an_event_is_refused_and_taken_again_when_there_is_room(tmp_path):
    with without_pubsub(tmp_path) as server:
        # The kernel's limit on the size of a file fails a write as a full disk does, root or not.
        endless = resource.RLIM_INFINITY
        assert_refused_and_then_taken(
            server,
            lambda: resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (4096, endless)),
            lambda: resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (endless, endless)),
            waiting=lambda: waiting_ids("", tmp_path),
        )


@pytest.fixture
def small_disk():
    """A file system of 4 MB."""
    with tempfile.TemporaryDirectory(prefix="signin-small-disk-") as directory:
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", directory]
        if not shutil.which("mount") or subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("a file system can be mounted by root only")
        try:
            yield Path(directory)
        finally:
            subprocess.run(["umount", "-l", directory], check=True)


def test_on_a_small_disk_that_fills_up_no_event_is_answered_without_a_home(tmp_path, small_disk):
    url = f"sqlite:///{small_disk / 'signin.db'}"
    migrate(Settings(_env_file=None, database_url=url))
    ballast = small_disk / "ballast"

    def fill():
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(b"\0" * 4096):
                pass

    with without_pubsub(tmp_path, url) as server:
        assert_refused_and_then_taken(
            server, fill, ballast.unlink, waiting=lambda: waiting_ids(url, tmp_path)
        )


def test_without_its_database_server_the_service_refuses_and_recovers_by_itself(tmp_path):
    with tempfile.TemporaryDirectory(prefix="signin-postgres-", ignore_cleanup_errors=True) as directory:
        data = Path(directory) / "data"
        servers = [Postgres(data)]
        url = servers[0].create(migrated=True)
        try:
            with without_pubsub(tmp_path, url) as server:
                assert_refused_and_then_taken(
                    server,
                    servers[0].stop,
                    lambda: servers.append(Postgres(data)),
                    waiting=lambda: waiting_ids(url, tmp_path),
                )
        finally:
            servers[-1].stop()


def test_on_a_database_server_that_only_reads_the_service_refuses_and_recovers_by_itself(tmp_path, postgres):
    url = postgres.create(migrated=True)
    name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]

    def alter(change):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f'ALTER DATABASE "{name}" {change}')
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    with without_pubsub(tmp_path, url) as server:
        assert_refused_and_then_taken(
            server,
            lambda: alter("SET default_transaction_read_only = on"),
            lambda: alter("RESET default_transaction_read_only"),
            waiting=lambda: waiting_ids(url, tmp_path),
        )


def set_writable(path, writable):
    """Skips where neither permissions nor the immutable flag keep this user from writing."""
    if os.getuid():
        path.chmod((0o755 if path.is_dir() else 0o644) if writable else (0o555 if path.is_dir() else 0o444))
    elif subprocess.run(["chattr", "-i" if writable else "+i", path], check=False).returncode:
        pytest.skip("root writes everywhere on this file system")


@pytest.mark.parametrize("also_directory", [False, True])
def test_a_database_file_that_cannot_be_written_at_the_start_is_used_once_it_can(tmp_path, also_directory):
    home = tmp_path / "database"
    home.mkdir()
    file = home / "signin.db"
    url = f"sqlite:///{file}"
    migrate(Settings(_env_file=None, database_url=url))
    protected = [file, home] if also_directory else [file]
    try:
        for path in protected:
            set_writable(path, False)
        with without_pubsub(tmp_path, url) as server:
            witness = Witness(server)
            assert {answer.status_code for answer in witness.flood()} == {503}
            for path in reversed(protected):
                set_writable(path, True)
            until(lambda: witness.one().is_success, RECOVERY_SECONDS)
            assert witness.promised <= waiting_ids(url, tmp_path)
    finally:
        for path in reversed(protected):
            set_writable(path, True)


def test_behind_a_lock_of_another_program_the_service_refuses_in_bounded_time(tmp_path, database_url):
    locks = contextlib.ExitStack()

    def lock():
        if database_url.startswith("sqlite"):
            path = database_url.removeprefix("sqlite:///")
            connection = sqlite3.connect(path, isolation_level=None)
            locks.callback(connection.close)
            connection.execute("BEGIN IMMEDIATE")
        else:
            connection = locks.enter_context(psycopg.connect(database_url))
            connection.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")

    with without_pubsub(tmp_path, database_url) as server:
        assert_refused_and_then_taken(
            server, lock, locks.close, waiting=lambda: waiting_ids(database_url, tmp_path)
        )


def test_no_event_that_was_answered_is_lost_when_the_service_is_killed_under_load(tmp_path, database_url):
    tally = kill_rounds.run(tmp_path, 2, database_url=database_url, quiet=True)
    assert len(tally.promised) >= 2 * kill_rounds.LEAST_ANSWERS
    assert {"published", "spooled"} <= tally.statuses.keys()
    assert tally.lost() == []
    assert tally.renamed() == []


def test_two_workers_that_are_killed_under_load_lose_nothing_either(tmp_path, database_url):
    tally = kill_rounds.run(tmp_path, 2, database_url=database_url, workers=2, quiet=True)
    assert {"published", "spooled"} <= tally.statuses.keys()
    assert tally.lost() == []
    assert tally.renamed() == []


def test_what_waited_in_the_outbox_at_sigterm_is_published_after_the_next_start(tmp_path, database_url):
    with local_pubsub(tmp_path) as pubsub:
        make_topic(pubsub.address)
        set_faults(pubsub.address, [Fault(method="Publish", code="UNAVAILABLE")])
        with service(tmp_path, pubsub.address, database_url=database_url) as server:
            witness = Witness(server)
            assert {answer.json()["status"] for answer in witness.flood()} == {"spooled"}
            assert server.stop() == 0
        set_faults(pubsub.address, [])
        with service(tmp_path, pubsub.address, database_url=database_url) as server:
            until(lambda: waiting_rows(database_url, tmp_path) == 0)
            assert server.stop() == 0
        assert {message.attributes["event_id"] for message in pull_all(pubsub.address)} == witness.promised
