"""The command line's own client of the service, and where it finds one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from rich.markup import escape

from service.cli.found_stack import DATABASE, FoundStack, find_stack
from service.cli.terminal import command, err, fail, load_settings
from service.config import Settings, is_loopback, masked
from service.local.running import end_of_last

DEADLINE_SECONDS = 60.0
# Cloud Run takes its own token from a header of its own, and hands the other one on as it is.
# https://cloud.google.com/run/docs/authenticating/service-to-service
_CREDENTIALS = {
    "Authorization": "SIGNIN_API_KEY",
    "X-Serverless-Authorization": "SIGNIN_SERVERLESS_TOKEN",
}


def running_settings() -> Settings:
    """The settings, completed by the addresses of a local stack that runs on the data directory.

    Variables that the user set win: where they name another deployment, nothing of the stack is used.
    """
    return load_settings(running_overrides())


def running_overrides() -> dict[str, str]:
    """The fields that a local stack gives which runs on the data directory, and says so; else none."""
    stack = find_stack()
    if stack is None:
        return {}
    stack.tell()
    return stack.overrides


def database_settings() -> Settings:
    """The settings for commands on the database alone; says so where the running service has another."""
    settings = load_settings()
    stack = find_stack()
    if stack and stack.database and not stack.has(settings):
        err.print(
            f"[yellow]{escape(_two_databases(stack, settings))}: is {DATABASE} the same?[/]", soft_wrap=True
        )
    return settings


def moving_settings() -> Settings:
    """`running_settings` for commands that bring events from the database into the topic, or soon will.

    Ends the command where the database and the topic would be those of two deployments: events that were
    published into the wrong one are in no outbox any more.
    """
    settings = running_settings()
    stack = find_stack()
    if stack is None:
        return settings
    if not stack.against:
        if stack.database and not stack.has(settings):
            fail(f"{_two_databases(stack, settings)}: set {DATABASE} to the same", exit_code=2)
    elif stack.has(settings):
        fail(
            f"the database is that of the service that runs here, and {stack.why_not()}: set {DATABASE} too",
            exit_code=2,
        )
    elif stack.against == (DATABASE,) and not settings.pubsub_emulator_host:
        fail(
            f"{DATABASE} is not the database of what runs here: say by SIGNIN_PROJECT or "
            "PUBSUB_EMULATOR_HOST where its events belong",
            exit_code=2,
        )
    return settings


def _two_databases(stack: FoundStack, settings: Settings) -> str:
    ours = masked(settings.async_database_url)
    return f"the service that runs here has its data in {stack.database}, and this command works on {ours}"


def service_url(url: str | None) -> str:
    """The service's base URL: as given, by SIGNIN_URL, of the running `signin up`, or the default port.

    Ends the command where that would be the service of a stack although the settings name another deployment.
    So it does where a stack of this directory was killed: another service may have its port by now.
    """
    if chosen := url or os.environ.get("SIGNIN_URL"):
        return (chosen if "://" in chosen else f"http://{chosen}").rstrip("/")
    settings = load_settings()
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    default = f"http://{host}:{settings.port}"
    stack = find_stack()
    if stack is None:
        look_for_end(settings.data_dir.absolute(), default)
        return default
    if "SIGNIN_URL" not in stack.environment:
        return default
    local = stack.environment["SIGNIN_URL"]
    if not set(stack.against) - {DATABASE}:  # the service has a database of its own choice
        return local
    if default == local:
        fail(
            f"{local} is the service of the local stack, and {stack.why_not()}: say --url or SIGNIN_URL",
            exit_code=2,
        )
    stack.tell()
    return default


@cache  # told once, however often a command wants the address
def look_for_end(data_dir: Path, default: str) -> None:
    """Says on standard error that a stack of the directory does not run any more, if there was one."""
    match end_of_last(data_dir):
        case "killed":
            other = f"Start it with `{command('up')}`, or name another service with --url or SIGNIN_URL"
            fail(f"the stack of {data_dir} does not run any more. {other}.", exit_code=2)
        case "stopped":
            err.print(
                f"the stack of {data_dir} does not run; asking {default}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )


def credentials(base_url: str) -> dict[str, str]:
    """The headers with the key of SIGNIN_API_KEY and, for Cloud Run, the token of SIGNIN_SERVERLESS_TOKEN.

    Either may stand in the file that the variable with `_FILE` names, and none has to be there. None is ever
    sent to another machine in the clear: that ends the command, as both variables of one at once do.
    """
    held = {header: _secret(variable) for header, variable in _CREDENTIALS.items()}
    found = {header: f"Bearer {secret}" for header, secret in held.items() if secret}
    parts = urlsplit(base_url)
    if found and parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        fail(f"{base_url} is not https: the key would be readable on its way", exit_code=2)
    return found


def _secret(variable: str) -> str:
    """What the variable says, or the file that its `_FILE` names; empty where neither is set."""
    secret = os.environ.get(variable, "").strip()
    if path := os.environ.get(f"{variable}_FILE"):
        if secret:
            fail(f"{variable} and {variable}_FILE are both set: which one counts?", exit_code=2)
        try:
            secret = Path(path).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            fail(f"{variable}_FILE={path} cannot be read ({type(error).__name__})", exit_code=2)
    if not secret.isascii() or not secret.isprintable():
        fail(f"{variable} holds characters that no key and no token has", exit_code=2)
    return secret


def request(
    method: str, base_url: str, path: str, *, headers: Mapping[str, str] | None = None, **arguments: Any
) -> Any:
    """Calls the service and returns the decoded JSON; a problem document ends the command."""
    headers = {**credentials(base_url), **(headers or {})}
    try:
        response = httpx.request(
            method, base_url + path, timeout=DEADLINE_SECONDS, headers=headers, **arguments
        )
    except httpx.TransportError as error:
        kind = type(error).__name__
        fail(f"{base_url} does not answer ({kind}). Is the service running? Try `{command('up')}`.")
    if not response.is_success:
        fail(problem_sentence(response))
    try:
        return response.json()
    except ValueError:
        fail(stranger_sentence(response))


def stranger_sentence(response: httpx.Response) -> str:
    """That an answer is none of the service's, whatever its status says."""
    return (
        f"{response.url} answered {response.status_code} with what is no answer of this service: "
        "is a login page or another program in front of it?"
    )


def problem_sentence(response: httpx.Response) -> str:
    """What a problem document says, in one line."""
    try:
        problem = response.json()
        said = f"{problem['title']}: {problem['detail']} ({response.status_code} {problem['code']})"
    except (ValueError, KeyError, TypeError):
        said = f"the service answered {response.status_code} with no problem document"
        if response.status_code in (401, 403):
            said += ". Where that is Cloud Run's answer, SIGNIN_SERVERLESS_TOKEN is where its token is given."
        return said
    if response.status_code != 401:
        return said
    return f"{said}. SIGNIN_API_KEY is where a key is given, SIGNIN_SERVERLESS_TOKEN where Cloud Run's is."
