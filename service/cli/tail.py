"""`signin tail`: follows the topic on a subscription of its own and prints events as they come."""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import typer

from service.cli.client import running_settings
from service.cli.moments import moment
from service.cli.rows import preview
from service.cli.terminal import abandon_output, clear_errors, command, err, fail
from service.clients import Clients
from service.config import LOCAL_PROJECT, Settings
from service.subscriber import MOST_MESSAGES, Past, Subscription, SubscriptionError
from transforms import timestamps
from transforms.replay import event_id_of
from transforms.signin_event import EventError, decode

REMOVE_SECONDS = 5.0
_NAME = re.compile(r"(?!goog)[A-Za-z][A-Za-z0-9\-_.~+%]{2,254}")
_PATH = re.compile(r"projects/[^/]+/subscriptions/[^/]+")
RECENT_SECONDS = 1.0  # who begins now has waited for the subscription meanwhile
_encode = msgspec.json.Encoder().encode
_Show = Callable[[Any], str]


def tail(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each message")] = False,
    subscription: Annotated[
        str | None,
        typer.Option(help="A subscription of its own to keep; the next tail goes on where this one ended"),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Begin there: RFC 3339, an age such as 10m, or now to skip what waits")
    ] = None,
    count: Annotated[int, typer.Option(min=0, help="End after so many messages; 0 never ends")] = 0,
) -> None:
    """Print each event of the topic as it comes, until Ctrl-C. Takes nothing away from the job."""
    with clear_errors():
        settings = running_settings()
        if not settings.pubsub_emulator_host and settings.project == LOCAL_PROJECT:
            fail(
                f"no local stack is used on {settings.data_dir.absolute()}; "
                f"start one with `{command('up')}`, or set SIGNIN_PROJECT to follow a topic of Google Cloud"
            )
        begin = None if since is None else datetime.now(UTC) if since == "now" else moment(since)
        show = json_line if as_json else text_line
        try:
            asyncio.run(follow(settings, subscription, begin, count, show))
        except SubscriptionError as error:
            fail(str(error))
        except BrokenPipeError:  # as `tail | head` ends
            abandon_output()


async def follow(
    settings: Settings, name: str | None, begin: datetime | None, count: int, show: _Show
) -> None:
    """Prints until a signal comes or `count` messages are printed. Raises SubscriptionError."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    clients = Clients(settings)
    subscription = Subscription(clients, path_of(name, settings.project))
    temporary = name is None
    try:
        following = asyncio.create_task(
            print_from(subscription, settings.topic_path, temporary, begin, count, show)
        )
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({following, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        left_behind = await remove(subscription) if temporary else ""
        if not following.cancelled():
            following.result()
        if left_behind:
            err.print(left_behind, highlight=False, markup=False, soft_wrap=True)
    finally:
        await clients.close()


async def remove(subscription: Subscription) -> str:
    """Deletes it, in a moment; else a sentence that says so, for nobody waits for Pub/Sub at the end."""
    try:
        async with asyncio.timeout(REMOVE_SECONDS):
            await subscription.delete()
    except (SubscriptionError, TimeoutError) as error:
        why = str(error) or "Pub/Sub does not answer"
        return f"{subscription.path} may be left behind ({why}); Pub/Sub deletes it a day after its last use"
    return ""


def gap_of(past: Past, age_seconds: float) -> str:
    """What may be missing of a beginning that lies so far back, in a sentence; empty where nothing is."""
    if age_seconds < max(past.topic_seconds, RECENT_SECONDS):
        return ""
    if past.is_new:
        kept = f"keeps {past.topic_seconds:g} s" if past.topic_seconds else "keeps nothing"
        return f"The subscription is new, and the topic {kept} from before: older events do not come."
    if past.keeps_acknowledged:
        return ""
    return "Events that were acknowledged on this subscription before do not come again."


def path_of(name: str | None, project: str) -> str:
    """The full name of the subscription; ends the command where it cannot be one."""
    if name is None:
        return f"projects/{project}/subscriptions/signin-tail-{secrets.token_hex(8)}"
    if _PATH.fullmatch(name):
        return name
    if not _NAME.fullmatch(name):
        fail(f"{name} is not a name of a Pub/Sub subscription", exit_code=2)
    return f"projects/{project}/subscriptions/{name}"


class Outages:
    """Tells of each time without Pub/Sub once."""

    def __init__(self) -> None:
        self._status = ""

    def tell(self, status: str) -> None:
        if status != self._status:
            err.print(f"Pub/Sub does not answer ({status}); still trying", highlight=False)
        self._status = status

    def end(self) -> None:
        self._status = ""


async def print_from(
    subscription: Subscription,
    topic: str,
    temporary: bool,
    begin: datetime | None,
    count: int,
    show: _Show,
) -> None:
    """Makes the subscription, moves it to `begin`, and prints. Raises SubscriptionError."""
    outages = Outages()
    past = await subscription.ensure(topic, temporary=temporary, is_away=outages.tell)
    if begin:
        await subscription.seek(begin, outages.tell)
        if gap := gap_of(past, (datetime.now(UTC) - begin).total_seconds()):
            err.print(f"[yellow]{gap}[/]", highlight=False, soft_wrap=True)
    outages.end()
    err.print(f"following {topic} on {subscription.path}", highlight=False, soft_wrap=True)
    await print_messages(subscription, count, show, outages)


async def print_messages(subscription: Subscription, count: int, show: _Show, outages: Outages) -> None:
    """Prints each message, and acknowledges it when it is out: a tail that is killed loses none."""
    left = count
    while left or not count:
        received = await subscription.pull(left or MOST_MESSAGES, outages.tell)
        outages.end()
        if not received:
            continue
        for each in received:
            sys.stdout.write(show(each.message) + "\n")
        sys.stdout.flush()
        await subscription.acknowledge([each.ack_id for each in received])
        left = max(0, left - len(received))


def text_line(message: Any) -> str:
    """When it was published, who and when; of a message that is no sign-in, why and its beginning."""
    published = published_at(message)
    mark = "  (replayed)" if "replay_of" in message.attributes else ""
    try:
        event = decode(message.data)
    except EventError as error:
        return f"{published}  {error.code}: {preview(message.data)}{mark}"
    event_id = event.event_id or event_id_of(message.attributes) or ""
    extra = "".join(f"  {key}={readable(value)}" for key, value in sorted(event.attributes.items()))
    return f"{published}  {event.userid}  {event.date}  {readable(event_id)}{extra}{mark}"


def json_line(message: Any) -> str:
    """The message as JSON: `event` where it is a sign-in, else `reason` and `payload` in base64."""
    line: dict[str, Any] = {
        "published_at": published_at(message),
        "message_id": message.message_id,
        "attributes": dict(message.attributes),
    }
    try:
        event = decode(message.data)
    except EventError as error:
        line |= {"reason": error.code, "payload": base64.b64encode(message.data).decode()}
    else:
        event_id = event.event_id or event_id_of(message.attributes)
        line["event"] = {
            "userid": event.userid,
            "date": event.date,
            "event_id": event_id,
            "attributes": event.attributes,
        }
    return _encode(line).decode()


def published_at(message: Any) -> str:
    return timestamps.from_datetime(message.publish_time.ToDatetime())


def readable(text: str) -> str:
    """The text without what would move the cursor."""
    return "".join(c if c.isprintable() else "�" for c in text)
