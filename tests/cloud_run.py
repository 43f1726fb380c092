"""Cloud Run's front door: who may pass is decided by a token, which goes on without its signature."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HEADER = "X-Serverless-Authorization"


def for_cloud_run(token):
    return {HEADER: f"Bearer {token}"}


def without_signature(token):
    """The token as Cloud Run hands it on."""
    return f"{token.rpartition('.')[0]}.SIGNATURE_REMOVED_BY_GOOGLE"


class CloudRun:
    """Passes requests that show one of `tokens` on to the service on `port`.

    It looks at `X-Serverless-Authorization` where that is sent, else at `Authorization`, and takes the
    signature away in that header alone. Everybody else gets a page with 403.
    """

    def __init__(self, port, *tokens):
        front = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.pass_on()

            def do_POST(self):
                self.pass_on()

            def pass_on(self):
                status, kind, body = front.answer(self)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._port = port
        self._tokens = tokens
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request):
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        headers = dict(request.headers)
        looked_at = HEADER if HEADER in headers else "Authorization"
        token = headers.get(looked_at, "").removeprefix("Bearer ")
        if token not in self._tokens:
            return 403, "text/html", b"<html><title>403 Forbidden</title></html>"
        headers[looked_at] = f"Bearer {without_signature(token)}"
        service = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        try:
            service.request(request.command, request.path, body, headers)
            answer = service.getresponse()
            return answer.status, answer.headers["Content-Type"], answer.read()
        finally:
            service.close()
