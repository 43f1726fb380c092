"""What is secret in no output: a real service is driven well and badly, and all that it wrote is searched."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections import Counter
from contextlib import ExitStack

import httpx
import psycopg
import pytest
from sqlalchemy import make_url

from service.auth import keys, scopes
from service.config import Settings
from service.db import Database
from service.local.faults import Fault, set_faults
from tests.bigquery_servers import local_bigquery
from tests.cloud_run import for_cloud_run
from tests.dead_letter_world import LetterTables, letter
from tests.doors import AUDIENCE, Issuer, bearer, make_key
from tests.otlp_receiver import Receiver
from tests.pubsub_topic import make_topic
from tests.running import until
from tests.server_process import local_pubsub, service
from tests.serving import JSON, NOBODY

USERID = "Userid-Zq81hidden"
SECRETS = {
    "userid": USERID,
    "attribute": "Attribute-Zq82hidden",
    "garbage": "Garbage-Zq83hidden",
    "database password": "Password-Zq84hidden",
    "receiver token": "Receiver-Zq85hidden",
    "unknown key": "signin_Zq86hidden",
    "query": "Query-Zq87hidden",
    "dead letter": "Letter-Zq88hidden",
    "token for Cloud Run": "Serverless-Zq89hidden",
}
OWN = ("database password", "receiver token")  # which no caller has sent
SCOPES = json.dumps({"*": ["events:write", "jobs:read"]})
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def event(**fields):
    given = {"userid": USERID, "date": "2017-10-17T20:57:17Z", "attributes": {"k": SECRETS["attribute"]}}
    return json.dumps(given | fields).encode()


class Caller:
    """Sends requests and keeps what they were answered; what it sent itself may stand in a problem."""

    def __init__(self, url, key):
        shown = bearer(key) | for_cloud_run(SECRETS["token for Cloud Run"])
        self._client = httpx.Client(base_url=url, headers=shown, timeout=20)
        self.answers = []

    def send(self, method, path, content=b"", headers=None):
        answer = self._client.request(method, path, content=content, headers=headers or {})
        self.answers.append(answer)
        return answer.status_code

    def post(self, content, path="/events/signin", **headers):
        return self.send("POST", path, content, JSON | headers)

    def close(self):
        self._client.close()


@pytest.fixture
def issuer():
    with Issuer().serving() as issuer:
        yield issuer


def with_password(url):
    parts = make_url(url).set(password=SECRETS["database password"])
    return parts.render_as_string(hide_password=False)


async def new_key(url):
    database = Database(Settings(_env_file=None, database_url=url))
    try:
        return (await make_key(database, scopes.ADMIN)).text
    finally:
        await database.close()


def secret_of(key):
    """The whole of a key's secret, which may contain the character before it: the id is no secret."""
    return keys.parse(key.encode()).secret.decode()


def drive(caller, token, pubsub, database_url):
    """Good, bad and failing requests; returns how they were answered."""
    forged = token[:-8] + "AAAAAAAA"
    caller.post(event())
    caller.post(event(), traceparent=f"00-{TRACE}-00f067aa0ba902b7-01")
    caller.post(b"[%s, %s]" % (event(), event(date="x")), "/events/signin/batch")
    caller.post(event(date="no date"))
    caller.post(event(event_id=f" {USERID}"))
    caller.post(SECRETS["garbage"].encode())
    caller.post(b"\xff" + SECRETS["garbage"].encode())
    caller.post(event(userid=USERID * 30))
    caller.post(b'{"%s": 1}' % SECRETS["garbage"].encode())
    for credential in (SECRETS["unknown key"], token, forged):
        caller.post(event(), **bearer(credential))
        caller.send("GET", "/jobs", headers=bearer(credential))
    caller.send("GET", f"/jobs?name={SECRETS['query']}&state=no")
    caller.post(b'{"nonsense": "%s"}' % SECRETS["garbage"].encode(), "/dead-letters/replay")
    caller.post(b'{"nonsense": "%s"}' % SECRETS["garbage"].encode(), "/jobs")
    for code in ("INVALID_ARGUMENT", "PERMISSION_DENIED"):
        set_faults(pubsub, [Fault(method="Publish", code=code, message="no")])
        caller.post(event())
    set_faults(pubsub, [Fault(method="Publish", code="UNAVAILABLE")])
    caller.post(event())
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE outbox ADD CONSTRAINT never CHECK (bytes < 0) NOT VALID")
        caller.post(event())
        connection.execute("ALTER TABLE outbox DROP CONSTRAINT never")
        connection.execute("ALTER TABLE jobs RENAME COLUMN name TO moved")
        caller.send("GET", "/jobs")
        connection.execute("ALTER TABLE jobs RENAME COLUMN moved TO name")
        connection.execute("ALTER TABLE jobs RENAME TO moved")
        caller.send("GET", "/jobs")
        connection.execute("ALTER TABLE moved RENAME TO jobs")
    set_faults(pubsub, [])
    caller.send("GET", "/readyz")
    return Counter(answer.status_code for answer in caller.answers)


def found_in(text, secrets):
    """Which secrets stand in the text, as they are, in base64 or in hexadecimal."""
    spellings = {}
    for name, secret in secrets.items():
        raw = secret.encode()
        spellings[name] = [secret, raw.hex(), base64.b64encode(raw).decode().rstrip("=")[:-1]]
    return {name for name, forms in spellings.items() if any(form in text for form in forms)}


def drive_letters(caller):
    """Looks at the dead letters and replays them."""
    caller.send("GET", f"/dead-letters?event_id={SECRETS['query']}")
    assert caller.send("GET", "/dead-letters") == 200
    assert found_in(caller.answers[-1].text, SECRETS) == {"dead letter", "attribute"}
    assert caller.post(b"{}", "/dead-letters/replay") == 202
    place = caller.answers[-1].headers["Location"]
    until(lambda: caller.send("GET", place) == 200 and caller.answers[-1].json()["ended_at"])


def run(tmp_path, postgres, issuer, level, bigquery=""):
    """Drives a service with this level; returns its outputs by name, its answers, and what was secret."""
    plain_url = postgres.create(migrated=True)
    key = asyncio.run(new_key(plain_url))
    with ExitStack() as stack:
        receiver = stack.enter_context(Receiver())
        pubsub = stack.enter_context(local_pubsub(tmp_path)).address
        make_topic(pubsub)
        settings = issuer.settings()
        server = stack.enter_context(
            service(
                tmp_path,
                pubsub,
                database_url=with_password(plain_url),
                options=["--debug-log", str(tmp_path / "debug.log")] if level == "DEBUG" else [],
                BIGQUERY_EMULATOR_HOST=bigquery or f"http://{NOBODY}",
                SIGNIN_LOG_LEVEL=level,
                SIGNIN_OIDC_ISSUER=settings["oidc_issuer"],
                SIGNIN_OIDC_AUDIENCE=AUDIENCE,
                SIGNIN_OIDC_SCOPES=SCOPES,
                SIGNIN_DEAD_LETTER_TABLE="secrets.dead_letters",
                OTEL_EXPORTER_OTLP_HEADERS=f"x-token={SECRETS['receiver token']}",
                **receiver.environment,
            )
        )
        caller = Caller(server.address, key)
        stack.callback(caller.close)
        token = issuer.token()
        statuses = drive(caller, token, pubsub, plain_url.replace("+psycopg", ""))
        if bigquery:
            drive_letters(caller)
        caller.send("GET", "/metrics")
        assert server.stop() == 0
    header, claims, signature = token.split(".")
    parts = {"token's header": header, "token's claims": claims, "token's signature": signature[:-8]}
    secrets = SECRETS | {"key": secret_of(key)} | parts
    outputs = {
        "stderr": (tmp_path / "service-serve.log").read_text(),
        "metrics": caller.answers[-1].text,
        "spans and metrics by OTLP": "".join(body.decode("latin-1") for body in receiver.bodies),
    }
    if level == "DEBUG":
        outputs["debug log"] = (tmp_path / "debug.log").read_text()
    assert receiver.headers[0]["x-token"] == SECRETS["receiver token"]
    return outputs, caller, secrets, statuses


def assert_silent(outputs, caller, secrets, statuses):
    assert not {name for text in outputs.values() for name in found_in(text, secrets)}
    never = {name: secret for name, secret in secrets.items() if name in OWN or name not in SECRETS}
    assert not [answer.text for answer in caller.answers if found_in(answer.text, never)]
    assert {202, 207, 400, 401, 422, 500, 503} <= statuses.keys()


def test_what_is_looked_for_of_a_key_is_its_whole_secret_also_where_that_has_underscores():
    for secret in ("a" * 43, "_" * 43, f"{'a' * 41}_b"):
        assert secret_of(f"signin_0123456789ab_{secret}") == secret


def test_a_service_at_debug_writes_no_secret_and_no_payload_anywhere(tmp_path, postgres, issuer):
    outputs, caller, secrets, statuses = run(tmp_path, postgres, issuer, "DEBUG")
    assert_silent(outputs, caller, secrets, statuses)
    entries = [json.loads(line) for line in outputs["stderr"].splitlines()]
    assert {"DEBUG", "INFO", "WARNING", "ERROR"} <= {entry["severity"] for entry in entries}
    traced = [each for each in entries if each.get("logging.googleapis.com/trace", "").endswith(TRACE)]
    assert all(each["logging.googleapis.com/trace_sampled"] is True for each in traced)
    (failed,) = [each for each in entries if "httpRequest" in each]
    assert failed["httpRequest"] == {"requestMethod": "GET", "requestUrl": "/jobs", "status": 500}
    assert re.fullmatch(r"projects/signin-local/traces/[0-9a-f]{32}", failed["logging.googleapis.com/trace"])


@pytest.mark.soak
@pytest.mark.parametrize("level", ["DEBUG", "INFO"])
def test_neither_does_one_that_shows_and_replays_dead_letters(tmp_path, postgres, issuer, level):
    with local_bigquery(tmp_path) as url:
        tables = LetterTables(url, "secrets")
        tables.add(letter(1, payload=SECRETS["dead letter"].encode(), attributes={"k": SECRETS["attribute"]}))
        tables.close()
        assert_silent(*run(tmp_path, postgres, issuer, level, url))
