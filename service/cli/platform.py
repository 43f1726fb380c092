"""The local stack and the service together, as `signin up` and `signin demo` run them."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from service.cli.terminal import fail, load_settings, out
from service.config import Settings, variable_name
from service.config.variables import FILE_SUFFIX, SECRETS
from service.local.process import ServerProcess
from service.local.stack import Stack
from service.local.templates import Templates

PUBSUB_PORT = 8085  # where Google's own emulator listens
DATAFLOW_PORT = 8086
BIGQUERY_PORT = 9050
START_SECONDS = 30.0
STOP_SECONDS = 20.0
LOCAL_RECONCILE_SECONDS = 0.5


class Fallible(Protocol):
    """Something that may end without having been asked."""

    async def failed(self) -> str:
        """Returns when it did, with a sentence that says what ended."""


class Platform:
    """Starts the stack, then the service as a child process against it; stops in reverse order."""

    def __init__(
        self, settings: Settings, *, pubsub_port: int = 0, dataflow_port: int = 0, bigquery_port: int = 0
    ) -> None:
        from service.auth.key_store import exist_now

        self.settings = local_settings(settings)
        self.settings.require_closed(exist_now)
        self.url = ""
        self._stack = Stack(
            self.settings, pubsub_port=pubsub_port, dataflow_port=dataflow_port, bigquery_port=bigquery_port
        )
        self._service: ServerProcess | None = None

    async def start(self) -> None:
        """Returns when everything answers. Raises ServerError or StackError, with nothing left running."""
        await self._stack.start()
        try:
            self.settings = pointed_at(self.settings, self._stack.environment)
            self._service = ServerProcess(
                "service",
                "service",
                ["serve", "--announce"],
                directory=Path.cwd(),
                log_path=self.settings.data_dir / "logs" / "service.log",
                environment=settings_environment(self.settings),
            )
            self.url = await self._service.start(START_SECONDS)
            self._stack.publish(SIGNIN_URL=self.url)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        if self._service:
            await self._service.stop(STOP_SECONDS)
        await self._stack.stop()

    async def failed(self) -> str:
        """Returns when the service or a server of the stack ends unasked, with a sentence that says which."""
        assert self._service is not None
        tasks = [asyncio.create_task(self._service.ended()), asyncio.create_task(self._stack.failed())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for task in tasks:
                task.cancel()

    def print_addresses(self) -> None:
        """The service's address and the variables that point other programs at the stack."""
        out.print(f"\n[dim]service:[/] {self.url}  [dim]documentation:[/] {self.url}/docs", highlight=False)
        print_environment(self._stack.environment)
        out.print(f"[dim]data and logs:[/] {self.settings.data_dir}", highlight=False, soft_wrap=True)


def local_settings(settings: Settings) -> Settings:
    """The settings for a world of our own: servers on this machine and their own template."""
    templates = Templates()
    template_path = Settings.model_fields["template_path"].default
    backfill_path = Settings.model_fields["backfill_template_path"].default
    local = {
        "template_path": template_path,
        "template_metadata": templates.find(template_path).metadata,
        "backfill_template_path": backfill_path,
        "backfill_template_metadata": templates.find(backfill_path).metadata,
        "data_dir": settings.data_dir.absolute(),
        "dataflow_emulator_host": "",
        "bigquery_emulator_host": "",
        "shutdown_delay_seconds": 0.0,  # no balancer has to notice
    }
    if settings.reconcile_interval_seconds == Settings.model_fields["reconcile_interval_seconds"].default:
        local["reconcile_interval_seconds"] = LOCAL_RECONCILE_SECONDS
    return settings.model_copy(update=local)


def pointed_at(settings: Settings, environment: Mapping[str, str]) -> Settings:
    """The settings with the addresses of a started stack."""
    names = ("pubsub_emulator_host", "dataflow_emulator_host", "bigquery_emulator_host")
    addresses = {name: environment[name.upper()] for name in names}
    # A Pub/Sub that is not ours has no Monitoring beside it.
    if monitoring := environment.get("SIGNIN_MONITORING_ENDPOINT"):
        addresses["monitoring_endpoint"] = monitoring
    return settings.model_copy(update=addresses)


def settings_environment(settings: Settings) -> dict[str, str]:
    """Every setting as the variable that a child process reads, whatever its own environment says."""
    values: dict[str, Any] = settings.model_dump(mode="json")
    files = {variable + FILE_SUFFIX: "" for variable in SECRETS}  # they are read already
    return files | {
        variable_name(name): json.dumps(value) if isinstance(value, dict | list) else str(value)
        for name, value in values.items()
        if value is not None
    }


def standalone_settings(overrides: Mapping[str, Any]) -> Settings:
    """Settings that come from nowhere but the defaults and `overrides`."""
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    return load_settings(defaults | dict(overrides))


def print_environment(environment: Mapping[str, str]) -> None:
    """The variables that point a Google client at the stack, ready to be pasted."""
    out.print("\n[dim]point other programs at it:[/]")
    for name, value in sorted(environment.items()):
        out.print(f"  export {name}={value}", highlight=False, soft_wrap=True)


async def until_interrupted(running: Fallible) -> None:
    """Returns on Ctrl-C or SIGTERM; ends the command when something stops by itself."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    waiters = [asyncio.create_task(stop.wait()), asyncio.create_task(running.failed())]
    try:
        done, _ = await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in waiters:
            waiter.cancel()
    if waiters[1] in done:
        fail(str(waiters[1].result()))
