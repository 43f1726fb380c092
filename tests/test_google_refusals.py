"""How Google refuses a check: credentials without a token, an API that is not enabled, errors by REST."""

from __future__ import annotations

import json
import threading
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.pubsub_v1 import types
from google.rpc import error_details_pb2

from service import checkup
from service.checkup import refusals
from service.checkup.place import Place
from service.google_rest import RestError
from service.local import grpc_server
from service.local.faults import FaultSwitch
from tests.checkup_world import DEADLINE_SECONDS
from tests.serving import settings_for


@asynccontextmanager
async def token_server(answer, status=200):
    """What gives tokens to service accounts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


async def test_credentials_are_good_when_they_give_a_token_and_name_who_asks(tmp_path, monkeypatch):
    key = rsa.generate_private_key(65537, 2048)
    account = {
        "type": "service_account",
        "project_id": "my-project",
        "private_key_id": "1",
        "client_email": "signin@my-project.iam.gserviceaccount.com",
        "client_id": "1",
        "private_key": key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    }
    path = tmp_path / "account.json"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    outcomes = [
        ({"access_token": "hush", "expires_in": 3600, "token_type": "Bearer"}, 200, "signin@my-project"),
        ({"error": "invalid_grant", "error_description": "Invalid JWT"}, 400, "give no token"),
    ]
    for answer, status, words in outcomes:
        async with token_server(answer, status) as url:
            path.write_text(json.dumps(account | {"token_uri": url}))
            place = Place(settings_for(tmp_path, bigquery_emulator_host=""))
            try:
                [credentials] = [each for each in checkup.checks_of(place) if each.name == "credentials"]
                [found] = await checkup.run([credentials], DEADLINE_SECONDS)
                granting = await place.grant("roles/x.y")
            finally:
                await place.close()
        assert found.status == ("ok" if status == 200 else "failed")
        assert words in found.detail
        member = account["client_email"] if status == 200 else "NAME@PROJECT.iam.gserviceaccount.com"
        command = "gcloud projects add-iam-policy-binding signin-local"
        assert granting == f"{command} --member=serviceAccount:{member} --role=roles/x.y"


async def test_an_api_that_is_not_enabled_is_told_with_the_command_that_enables_it(tmp_path):
    info = error_details_pb2.ErrorInfo(
        reason="SERVICE_DISABLED", domain="googleapis.com", metadata={"service": "pubsub.googleapis.com"}
    )

    async def refuse(*_):
        raise grpc_server.StatusError(grpc.StatusCode.PERMISSION_DENIED, "disabled", (info,))

    method = grpc_server.Method(refuse, types.GetTopicRequest.pb(), types.Topic.pb())
    handler = grpc_server.unary_handlers("google.pubsub.v1.Publisher", {"GetTopic": method}, FaultSwitch())
    server, address = await grpc_server.start_server([handler], "127.0.0.1", 0)
    place = Place(settings_for(tmp_path, address))
    try:
        [topic] = [each for each in checkup.checks_of(place) if each.name == "topic"]
        [found] = await checkup.run([topic], DEADLINE_SECONDS)
    finally:
        await place.close()
        await server.stop(0)
    assert found.detail == "The project has not enabled pubsub.googleapis.com."
    assert found.remedies == ("gcloud services enable pubsub.googleapis.com --project=signin-local",)


@pytest.mark.parametrize(
    ("status", "body", "meant"),
    [
        (403, {"error": {"message": "m", "status": "PERMISSION_DENIED"}}, ("PERMISSION_DENIED", "m", "")),
        (
            403,
            {
                "error": {
                    "message": "m",
                    "details": [
                        {
                            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                            "reason": "SERVICE_DISABLED",
                            "metadata": {"service": "bigquery.googleapis.com"},
                        }
                    ],
                }
            },
            ("PERMISSION_DENIED", "m", "bigquery.googleapis.com"),
        ),
        (
            403,
            {
                "error": {
                    "message": "m",
                    "errors": [{"reason": "accessNotConfigured", "domain": "usageLimits"}],
                }
            },
            ("PERMISSION_DENIED", "m", "the API"),
        ),
        (404, {"error": {"message": "m"}}, ("NOT_FOUND", "m", "")),
        (503, None, ("UNAVAILABLE", "words", "")),
        (0, None, ("UNAVAILABLE", "words", "")),
        (418, [], ("HTTP 418", "words", "")),
    ],
)
def test_a_refusal_by_rest_is_read_as_one_by_grpc(status, body, meant):
    error = RestError("words", status, b"" if body is None else json.dumps(body).encode())
    refusal = refusals.refusal_of(error)
    assert (refusal.status, refusal.message, refusal.disabled_api) == meant
