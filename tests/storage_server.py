"""Cloud Storage as its REST interface is described, for uploads and downloads of small objects."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class StorageServer:
    """`objects` holds bytes by (bucket, name). `script` has statuses that the next calls fail with; one
    of `lost` acts and then closes the connection without an answer.
    """

    def __init__(self, *buckets: str) -> None:
        self.buckets = set(buckets)
        self.objects: dict[tuple[str, str], bytes] = {}
        self.script: list[int | str] = []
        self.calls = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> StorageServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def insert(self, bucket: str, query: dict[str, list[str]], content: bytes) -> tuple[int, bytes]:
        assert query["uploadType"] == ["media"]
        assert query["ifGenerationMatch"] == ["0"]
        (name,) = query["name"]
        if bucket not in self.buckets:
            return 404, b'{"error": {"message": "The specified bucket does not exist."}}'
        if (bucket, name) in self.objects:
            return 412, b'{"error": {"message": "At least one of the pre-conditions did not hold."}}'
        self.objects[bucket, name] = content
        return 200, b"{}"

    def get(self, bucket: str, name: str, query: dict[str, list[str]]) -> tuple[int, bytes]:
        assert query["alt"] == ["media"]
        found = self.objects.get((bucket, name))
        return (404, b"No such object") if found is None else (200, found)

    def list(self, bucket: str) -> tuple[int, bytes]:
        return (200, b"{}") if bucket in self.buckets else (404, b"No such bucket")

    def _handler(outer) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the handler has a self of its own
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                _, storage, v1, b, bucket, o, *name = parts.path.split("/")
                assert (storage, v1, b, o) == ("storage", "v1", "b", "o")
                if name:
                    self._answer(lambda: outer.get(bucket, unquote(name[0]), parse_qs(parts.query)))
                else:
                    self._answer(lambda: outer.list(bucket))

            def do_POST(self) -> None:
                parts = urlsplit(self.path)
                _, upload, storage, v1, b, bucket, o = parts.path.split("/")
                assert (upload, storage, v1, b, o) == ("upload", "storage", "v1", "b", "o")
                content = self.rfile.read(int(self.headers["Content-Length"]))
                self._answer(lambda: outer.insert(bucket, parse_qs(parts.query), content))

            def _answer(self, act: Any) -> None:
                outer.calls += 1
                step = outer.script.pop(0) if outer.script else None
                status, body = (step, b"scripted") if isinstance(step, int) else act()
                if step == "lost":
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
