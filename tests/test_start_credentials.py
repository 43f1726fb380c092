"""A job whose credentials Google takes no longer says so in a sentence, not in a traceback."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.user_signin import run
from tests.service_account import write_service_account


class _RefusingHandler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.dumps({"error": "invalid_grant", "error_description": "Account was deleted"}).encode()
        self.send_response(400)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def token_url() -> Iterator[str]:
    """Where tokens are asked for, and nobody gets one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _RefusingHandler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join(10)
    server.server_close()


@pytest.fixture
def useless_credentials(token_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service account that was deleted, and no emulator."""
    path = write_service_account(tmp_path / "account.json", token_url)
    for name in list(os.environ):
        if "EMULATOR" in name:
            monkeypatch.delenv(name)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))


@pytest.mark.usefixtures("useless_credentials")
def test_credentials_that_give_no_token_end_the_start_with_a_sentence(caplog: pytest.LogCaptureFixture):
    assert run(["--project=my-project"]) == 2
    assert "my-project.user_signin.signins and my-project.user_signin.dead_letters" in caplog.text
    assert "no Google credentials that work" in caplog.text
    assert "Account was deleted" in caplog.text
    assert "gcloud auth application-default login" in caplog.text


@pytest.mark.usefixtures("useless_credentials")
def test_an_update_that_cannot_look_for_its_job_ends_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:1")  # the call leaves this machine by nobody
    options = ["--project=my-project", "--runner=DataflowRunner", "--region=us-central1", "--update"]
    options += ["--temp_location=gs://my-bucket/temp", "--sdk_container_image=image", "--job_name=signins"]
    assert run(options) == 2
    assert "The jobs in us-central1 cannot be listed: 503" in caplog.text
