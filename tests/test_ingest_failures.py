"""What happens to sign-ins when their last home fails: Pub/Sub is away and the database cannot be written.

The service runs in a process of its own, as in production. No answer is 2xx unless its event is in the
outbox, every answer comes in bounded time, memory stays flat, and all is well again without a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from dataclasses import dataclass
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
ANSWER_SECONDS = 15.0  # the publish deadline, the wait for a connection, one statement
RECOVERY_SECONDS = 20.0
CALLERS = 50
# Caches and the heap's fragments fill during the first thousands of failures; then the memory must stay.
WARM_UP = 3000
REQUESTS = 5000
GROWTH_BYTES = 5 << 20  # 1 KB a request: less than any request takes that something keeps alive
TRIES = 3
PATIENT = httpx.Timeout(ANSWER_SECONDS + 10)


def body(number):
    return b'{"userid": "u", "date": "%s", "event_id": "e-%d"}' % (DATE.encode(), number)


def memory(server):
    """Resident bytes of the service."""
    return sum(
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        for pid in server.pids()
    )


@dataclass
class Answer:
    """What one request got, and how long it took."""

    status: int
    head: bytes
    content: dict
    seconds: float


class Witness:
    """Sends events to a service, and knows which of them were answered with 2xx."""

    def __init__(self, server):
        self._server = server
        self._sent = 0
        self.promised = set()

    def one(self):
        with httpx.Client(base_url=self._server.address, timeout=PATIENT) as client:
            self._sent += 1
            answer = client.post("/events/signin", content=body(self._sent), headers=JSON)
            if answer.is_success:
                self._promise(self._sent, answer.json())
            return answer

    def press(self, count):
        """Sends `count` events over `CALLERS` connections; returns their answers."""
        numbers = iter(range(self._sent + 1, self._sent + count + 1))
        self._sent += count

        async def all_of_them():
            callers = (self._call(numbers) for _ in range(min(CALLERS, count)))
            return [answer for found in await asyncio.gather(*callers) for answer in found]

        return asyncio.run(all_of_them())

    async def _call(self, numbers):
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        found = []
        for number in numbers:
            started = time.monotonic()
            data = body(number)
            writer.write(
                b"POST /events/signin HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(data), data)
            )
            async with asyncio.timeout(ANSWER_SECONDS + 10):
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r", 1)[0])
                content = json.loads(await reader.readexactly(length))
            answer = Answer(int(head.split()[1]), head, content, time.monotonic() - started)
            if answer.status == 202:
                self._promise(number, content)
            found.append(answer)
        writer.close()
        return found

    def _promise(self, number, content):
        assert content["event_id"] == f"e-{number}"
        self.promised.add(content["event_id"])


def assert_refused(server, witness, requests):
    """While the trouble lasts: 503 with Retry-After in bounded time, memory flat, and the process lives."""
    processes = max(1, len(server.pids()) - 1)
    answers = witness.press(min(WARM_UP, requests) * processes)
    growth = GROWTH_BYTES
    for _ in range(TRIES):  # what is kept alive grows each time, a heap that has just taken a page does not
        if growth < GROWTH_BYTES:
            break
        before = memory(server)
        answers += witness.press(requests)
        growth = memory(server) - before
    refused = [answer for answer in answers if answer.status != 202]
    assert len(refused) > requests // 2  # what is left of pages and files may take a few
    assert {answer.status for answer in refused} == {503}, refused[0].content
    assert all(b"\r\nretry-after: " in answer.head for answer in refused)
    assert max(answer.seconds for answer in answers) < ANSWER_SECONDS
    assert growth < GROWTH_BYTES, f"{growth / 1e6:.1f} MB more after {requests} requests"
    assert httpx.get(f"{server.address}/healthz", timeout=5).status_code == 200


def assert_refused_and_then_taken(server, begin, end, *, waiting, keeps=True, requests=REQUESTS):
    """The test itself: `begin` makes the trouble, `end` ends it, `waiting` tells what is in the outbox.

    Where the trouble takes what was there before, `keeps` is False.
    """
    witness = Witness(server)
    assert witness.one().json()["status"] == "spooled"
    if not keeps:
        witness.promised.clear()
    begin()
    try:
        assert_refused(server, witness, requests)
    finally:
        end()
    pids = server.pids()
    until(lambda: witness.one().is_success, RECOVERY_SECONDS)
    assert witness.press(20)
    assert server.pids() == pids  # without a restart
    assert witness.promised
    assert witness.promised <= waiting()


@pytest.fixture(params=[1, 2], ids=["1 worker", "2 workers"])
def workers(request):
    return request.param


@contextlib.contextmanager
def without_pubsub(directory, database_url="", *, workers=1, **values):
    """A service whose Pub/Sub is away, so that every event has to go into the outbox."""
    values = {"SIGNIN_PUBLISH_DEADLINE_SECONDS": "5", **values}
    with service(directory, NOBODY, database_url=database_url, workers=workers, **values) as server:
        yield server


@pytest.fixture
def sqlite_home(tmp_path):
    """A directory with a migrated database in it."""
    home = tmp_path / "database"
    home.mkdir()
    migrate(Settings(_env_file=None, database_url=f"sqlite:///{home / 'signin.db'}"))
    return home


def test_on_a_full_disk_an_event_is_refused_and_taken_again_when_there_is_room(tmp_path, workers):
    with without_pubsub(tmp_path, workers=workers) as server:
        # The kernel's limit on the size of a file fails a write as a full disk does, root or not.
        endless = resource.RLIM_INFINITY

        def limit(size):
            for pid in server.pids():
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, endless))

        assert_refused_and_then_taken(
            server, lambda: limit(4096), lambda: limit(endless), waiting=lambda: waiting_ids("", tmp_path)
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


def fill(disk):
    """Leaves not one byte free; returns the file that takes them."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass
    return ballast


def test_on_a_small_disk_that_fills_up_no_event_is_answered_without_a_home(tmp_path, small_disk, workers):
    url = f"sqlite:///{small_disk / 'signin.db'}"
    migrate(Settings(_env_file=None, database_url=url))
    with without_pubsub(tmp_path, url, workers=workers) as server:
        assert_refused_and_then_taken(
            server,
            lambda: fill(small_disk),
            (small_disk / "ballast").unlink,
            waiting=lambda: waiting_ids(url, tmp_path),
        )


def test_a_database_server_whose_disk_is_full_refuses_and_recovers(tmp_path, small_disk, postgres, workers):
    url = postgres.create(migrated=True)
    place = small_disk / "tables"
    place.mkdir()
    shutil.chown(place, postgres.directory.stat().st_uid)
    name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE TABLESPACE \"small_{name}\" LOCATION '{place}'")
        connection.execute(f'ALTER TABLE outbox SET TABLESPACE "small_{name}"')

        def fill_and_make_sure():
            fill(small_disk)
            with pytest.raises(psycopg.errors.DiskFull):  # 53100
                connection.execute(
                    "INSERT INTO outbox (event_id, data, attributes, bytes, created_at)"
                    " SELECT 'x', repeat('x', 1000)::bytea, '{}', 1000, now() FROM generate_series(1, 9999)"
                )

        try:
            with without_pubsub(tmp_path, url, workers=workers) as server:
                assert_refused_and_then_taken(
                    server,
                    fill_and_make_sure,
                    (small_disk / "ballast").unlink,
                    waiting=lambda: waiting_ids(url, tmp_path),
                )
        finally:
            connection.execute("ALTER TABLE outbox SET TABLESPACE pg_default")
            connection.execute(f'DROP TABLESPACE "small_{name}"')


def test_while_the_directory_of_its_database_is_away_the_service_refuses(tmp_path, sqlite_home, workers):
    url = f"sqlite:///{sqlite_home / 'signin.db'}"
    away = tmp_path / "away"
    with without_pubsub(tmp_path, url, workers=workers) as server:
        assert_refused_and_then_taken(
            server,
            lambda: sqlite_home.rename(away),
            lambda: away.rename(sqlite_home),
            waiting=lambda: waiting_ids(url, tmp_path),
        )


def test_a_database_file_that_was_removed_takes_nothing_until_there_is_a_new_one(
    tmp_path, sqlite_home, workers
):
    url = f"sqlite:///{sqlite_home / 'signin.db'}"

    def remove():
        for path in sqlite_home.iterdir():
            path.unlink()

    with without_pubsub(tmp_path, url, workers=workers) as server:
        assert_refused_and_then_taken(
            server,
            remove,
            lambda: migrate(Settings(_env_file=None, database_url=url)),
            waiting=lambda: waiting_ids(url, tmp_path),
            keeps=False,
        )


def test_a_database_file_that_was_replaced_by_junk_takes_nothing(tmp_path, sqlite_home, workers):
    url = f"sqlite:///{sqlite_home / 'signin.db'}"
    away, junk = tmp_path / "away", tmp_path / "junk"
    junk.mkdir()
    (junk / "signin.db").write_bytes(b"this is no database " * 1000)

    def replace():
        sqlite_home.rename(away)
        junk.rename(sqlite_home)

    def put_back():
        sqlite_home.rename(junk)
        away.rename(sqlite_home)

    with without_pubsub(tmp_path, url, workers=workers) as server:
        assert_refused_and_then_taken(server, replace, put_back, waiting=lambda: waiting_ids(url, tmp_path))


@pytest.fixture
def own_postgres():
    """PostgreSQL servers of one directory: one that a test may stop, and those that it starts after it."""
    with tempfile.TemporaryDirectory(prefix="signin-postgres-", ignore_cleanup_errors=True) as directory:
        servers = [Postgres(Path(directory) / "data")]
        try:
            yield servers
        finally:
            servers[-1].stop()


def test_without_its_database_server_the_service_refuses_and_recovers_by_itself(
    tmp_path, own_postgres, workers
):
    url = own_postgres[0].create(migrated=True)
    with without_pubsub(tmp_path, url, workers=workers) as server:
        assert_refused_and_then_taken(
            server,
            own_postgres[0].stop,
            lambda: own_postgres.append(Postgres(own_postgres[0].directory)),
            waiting=lambda: waiting_ids(url, tmp_path),
        )


def test_a_database_server_that_hangs_costs_bounded_time(tmp_path, own_postgres, workers):
    url = own_postgres[0].create(migrated=True)

    def send(number):
        for pid in own_postgres[0].pids():
            os.kill(pid, number)

    with without_pubsub(tmp_path, url, workers=workers) as server:
        assert_refused_and_then_taken(
            server,
            lambda: send(signal.SIGSTOP),
            lambda: send(signal.SIGCONT),
            waiting=lambda: waiting_ids(url, tmp_path),
        )


def test_on_a_database_server_that_only_reads_the_service_refuses_and_recovers_by_itself(
    tmp_path, postgres, workers
):
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

    with without_pubsub(tmp_path, url, workers=workers) as server:
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
            assert {answer.status for answer in witness.press(300)} == {503}
            for path in reversed(protected):
                set_writable(path, True)
            until(lambda: witness.one().is_success, RECOVERY_SECONDS)
            assert witness.promised <= waiting_ids(url, tmp_path)
    finally:
        for path in reversed(protected):
            set_writable(path, True)


def test_behind_a_lock_of_another_program_the_service_refuses_in_bounded_time(
    tmp_path, database_url, workers
):
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

    with without_pubsub(tmp_path, database_url, workers=workers) as server:
        assert_refused_and_then_taken(
            server,
            lock,
            locks.close,
            waiting=lambda: waiting_ids(database_url, tmp_path),
            requests=700,  # callers wait up to the deadline of a commit, again and again
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
            assert {answer.content["status"] for answer in witness.press(300)} == {"spooled"}
            assert server.stop() == 0
        set_faults(pubsub.address, [])
        with service(tmp_path, pubsub.address, database_url=database_url) as server:
            until(lambda: waiting_rows(database_url, tmp_path) == 0)
            assert server.stop() == 0
        assert {message.attributes["event_id"] for message in pull_all(pubsub.address)} == witness.promised
