"""`signin serve --workers N`: several processes behind one port, as a user runs them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.pubsub_process import PubsubProcess
from tests.pubsub_topic import make_topic
from tests.running import MARK, clean_environment, marked, until
from tests.serving import ARTICLE, JSON, NOBODY

START_SECONDS = 60


class Served:
    """`signin serve --workers 2` on a free port; leaving the block leaves no process."""

    def __init__(self, directory, pubsub_address=NOBODY, **environment):
        self.mark = uuid.uuid4().hex
        points = {"PUBSUB_EMULATOR_HOST": pubsub_address, "DATAFLOW_EMULATOR_HOST": NOBODY, MARK: self.mark}
        self.printed = b""
        self._log_path = directory / "serve.log"
        self._log = self._log_path.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service", "serve", "--announce", "--port", "0", "--workers", "2"],
            cwd=directory,
            env=clean_environment() | {"PYTHONPATH": str(Path.cwd())} | points | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def __enter__(self):
        while not (line := re.search(rb'^{"ready": .*}$', self.printed, re.MULTILINE)):
            if not self.print_more(START_SECONDS):
                self.end()
                pytest.fail(f"it did not start:\n{self._log_path.read_text()}")
        self.url = json.loads(line[0])["ready"]
        return self

    def print_more(self, seconds):
        """Waits for more on standard output, and adds it to `printed`; False where nothing comes."""
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        more = os.read(self.process.stdout.fileno(), 100_000) if ready else b""
        self.printed += more
        return bool(more)

    def __exit__(self, *_):
        self.end()

    def end(self):
        for pid in marked(self.mark):
            with contextlib.suppress(ProcessLookupError):  # workers end with their parent
                os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=10)
        self.process.stdout.close()
        self._log.close()

    def pids(self):
        """The worker processes."""
        return {pid for pid, command in marked(self.mark).items() if "service.workers" in command}

    def answering(self):
        """The part of the request id that each process chooses for itself."""
        return httpx.get(f"{self.url}/healthz", timeout=30).headers["x-request-id"][:8]

    def answering_without(self, pid):
        """The same, while the process `pid` is held."""
        os.kill(pid, signal.SIGSTOP)
        try:
            return self.answering()
        finally:
            os.kill(pid, signal.SIGCONT)


def test_each_of_the_workers_answers_on_the_one_port(tmp_path):
    with Served(tmp_path) as served:
        first, second = sorted(served.pids())
        assert served.answering_without(first) != served.answering_without(second)


def test_workers_publish_to_one_topic(tmp_path):
    with PubsubProcess(tmp_path / "pubsub") as pubsub:
        make_topic(pubsub.address)
        with Served(tmp_path, pubsub.address) as served:
            found = set()
            for pid in served.pids():
                os.kill(pid, signal.SIGSTOP)
                answer = httpx.post(f"{served.url}/events/signin", content=ARTICLE, headers=JSON, timeout=30)
                os.kill(pid, signal.SIGCONT)
                assert answer.status_code == 202, answer.text
                found.add(answer.json()["message_id"])
            assert len(found) == 2


def test_a_worker_that_is_killed_is_replaced_while_requests_go_on(tmp_path):
    with Served(tmp_path) as served:
        victim, survivor = sorted(served.pids())
        statuses, over = [], threading.Event()

        def ask():
            while not over.is_set():
                statuses.append(httpx.get(f"{served.url}/healthz", timeout=30).status_code)

        asking = threading.Thread(target=ask)
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in served.pids())  # from here on nobody is with the one that died
        asking.start()
        try:
            until(lambda: len(served.pids()) == 2)
            replacement = (served.pids() - {survivor}).pop()
            until(lambda: len(statuses) > 20)
        finally:
            over.set()
            asking.join()
        assert set(statuses) == {200}
        assert served.answering_without(survivor)
        assert replacement not in {victim, survivor}


def test_sigterm_ends_parent_and_workers_with_code_0(tmp_path):
    with Served(tmp_path) as served:
        assert served.answering()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=40) == 0
        assert not marked(served.mark)
        with pytest.raises(httpx.ConnectError):
            served.answering()


def refuses(port):
    """Whether nobody takes a new caller."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except (ConnectionRefusedError, ConnectionResetError):  # reset: it waited to be taken
        return True
    return False


def test_sigterm_lets_a_request_in_flight_finish(tmp_path):
    with PubsubProcess(tmp_path / "pubsub") as pubsub:
        make_topic(pubsub.address)
        with Served(tmp_path, pubsub.address) as served:
            port = urlsplit(served.url).port
            with socket.create_connection(("127.0.0.1", port), timeout=30) as caller:
                caller.sendall(
                    b"POST /events/signin HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                    b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(ARTICLE)
                )
                assert caller.recv(1000).startswith(
                    b"HTTP/1.1 100 "
                )  # a worker has it and waits for the body
                served.process.send_signal(signal.SIGTERM)
                until(lambda: refuses(port))  # parent and workers have heard the signal
                caller.sendall(ARTICLE)
                assert caller.recv(1000).startswith(b"HTTP/1.1 202 ")
            assert served.process.wait(timeout=40) == 0


def test_every_worker_says_that_it_is_ending_until_the_delay_is_over(tmp_path):
    with Served(tmp_path, SIGNIN_SHUTDOWN_DELAY_SECONDS="600") as served:
        assert httpx.get(f"{served.url}/readyz", timeout=10).json().get("code") != "shutting_down"
        served.process.send_signal(signal.SIGTERM)

        def codes():
            found = set()
            for pid in served.pids():
                os.kill(pid, signal.SIGSTOP)  # the other one answers
                try:
                    found.add(httpx.get(f"{served.url}/readyz", timeout=10).json().get("code"))
                    assert httpx.get(f"{served.url}/healthz", timeout=30).status_code == 200
                finally:
                    os.kill(pid, signal.SIGCONT)
            return found

        until(lambda: codes() == {"shutting_down"})
        served.process.send_signal(signal.SIGTERM)  # the delay is for balancers, not for people
        assert served.process.wait(timeout=20) == 0
        assert not marked(served.mark)


def test_workers_do_not_outlive_a_parent_that_was_killed(tmp_path):
    with Served(tmp_path) as served:
        assert len(served.pids()) == 2
        served.process.kill()
        served.process.wait(timeout=10)
        until(lambda: not marked(served.mark))


def test_workers_that_cannot_start_end_the_command_instead_of_dying_for_ever(tmp_path):
    nowhere = Path("/proc/nowhere/signin.db")
    served = Served(tmp_path, SIGNIN_DATABASE_URL=f"sqlite:///{nowhere}")
    try:
        assert served.process.wait(timeout=START_SECONDS) == 1
        assert "could not start" in (tmp_path / "serve.log").read_text()
        assert not marked(served.mark)
    finally:
        served.end()


def test_what_workers_print_comes_out_of_the_command(tmp_path):
    printing = {"OTEL_TRACES_EXPORTER": "console", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with Served(tmp_path, **printing) as served:
        for pid, other in itertools.permutations(served.pids(), 2):
            os.kill(other, signal.SIGSTOP)
            try:
                assert httpx.get(f"{served.url}/version", timeout=30).status_code == 200
            finally:
                os.kill(other, signal.SIGCONT)
            while f'"process.pid": {pid}'.encode() not in served.printed:
                assert served.print_more(10), f"nothing of {pid} in {served.printed!r}"
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=40) == 0
