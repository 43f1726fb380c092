"""`signin loadtest` against servers that do not answer as they should, and in every form of HTTP."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from service.load import Crowd, Plan, Target
from tests.loadtest_figures import answers, figures

# Servers that do not answer as they should


@pytest.fixture
def port():
    """A port on which somebody listens and never accepts, answers or closes."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as listener:
        yield listener.getsockname()[1]


def test_a_server_that_hangs_is_counted_as_timeouts_and_breaks_every_limit_of_the_latency(port):
    code, found = figures(
        *("--url", f"http://127.0.0.1:{port}", "--rate", 200, "--duration", 0.5, "--timeout", 0.3),
        *("--concurrency", 2, "--max-p99-ms", 100_000),
    )
    assert code == 1
    assert found["unanswered"] == {"timeout": 100}
    assert found["latency_ms"]["p50"] is None
    assert found["verdicts"][0]["met"] is False


@pytest.mark.parametrize("options", [("--rate", 40), ("--concurrency", 2)])
def test_a_port_where_nobody_listens_is_counted_and_not_hammered(options):
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    code, found = figures("--url", f"http://127.0.0.1:{port}", "--duration", 0.5, *options)
    assert code == 1
    assert found["unanswered"].keys() == {"connection refused"}
    assert 2 <= found["requests"] <= 24
    assert found["error_share"] == 1


@pytest.fixture
def login_page():
    """The port of a server that answers every POST with 200 and a page, as a proxy before the service may."""
    page = b"<html>Please sign in</html>"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("batch", [1, 10])
def test_a_page_that_answers_every_request_with_200_is_no_service_that_takes_sign_ins(login_page, batch):
    code, found = figures(
        *("--url", f"http://127.0.0.1:{login_page}", "--count", 40, "--concurrency", 2, "--batch", batch),
        *("--max-error-share", 0),
    )
    assert code == 1
    assert answers(found) == {(200, "no sign-in answer"): 40}
    assert found["events"] == {"accepted": 0, "refused": 40, "unanswered": 0}


async def answering(answer):
    """A server that sends these bytes to whoever asks, and its port."""

    async def serve(reader, writer):
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(1)
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx"


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok", 202, b"ok"),
        (
            b"HTTP/1.1 202 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
            202,
            b"ok",
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", 503, b""),
        (b"HTTP/1.1 429 Slow\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", 429, b""),
        (b"SSH-2.0-OpenSSH\r\n", 0, b""),
    ],
)
async def test_answers_come_in_every_form_that_http_has(answer, status, body):
    server, port = await answering(answer)
    seen = []
    crowd = Crowd(
        Target("127.0.0.1", port),
        Plan(2, 5.0, requests=6, timeout_seconds=2.0),
        lambda _: REQUEST,
        lambda index, status, body, counts: seen.append((status, body, counts)),
    )
    samples = await crowd.run()
    server.close()
    assert seen == [(status, body, True)] * 6
    assert samples.statuses() == {str(status): 6}
    assert crowd.failures == ({} if status else {"not HTTP": 6})


async def test_what_happens_while_the_run_warms_up_does_not_count():
    server, port = await answering(b"HTTP/1.1 202 OK\r\nContent-Length: 0\r\n\r\n")
    for rate in (0.0, 100.0):
        seen = []
        crowd = Crowd(
            Target("127.0.0.1", port),
            Plan(1, 0.2, rate, warm_up_seconds=0.2),
            lambda _: REQUEST,
            lambda index, status, body, counts, seen=seen: seen.append(counts),
        )
        samples = await crowd.run()
        assert len(samples) == seen.count(True) > 0
        assert seen.count(False) > 0
        assert seen == sorted(seen)
    server.close()
    assert len(samples) == 20
