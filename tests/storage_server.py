"""Cloud Storage as its REST interface is described, for uploads, lists and downloads of small objects."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Answer = tuple[int, bytes]


class StorageServer:
    """`objects` holds bytes by (bucket, name), `encodings` the content encoding of some. `script` has
    statuses that the next calls fail with; one of `lost` acts and then closes the connection without an
    answer. `/token` gives tokens, `bearers` has those that came, and `ranges` the name and header of reads.
    """

    def __init__(self, *buckets: str) -> None:
        self.buckets = set(buckets)
        self.objects: dict[tuple[str, str], bytes] = {}
        self.encodings: dict[tuple[str, str], str] = {}
        self.ranges: list[tuple[str, str]] = []
        self.bearers: set[str] = set()
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

    def insert(self, bucket: str, query: dict[str, list[str]], content: bytes) -> Answer:
        assert query["uploadType"] == ["media"]
        assert query["ifGenerationMatch"] == ["0"]
        (name,) = query["name"]
        if bucket not in self.buckets:
            return 404, b'{"error": {"message": "The specified bucket does not exist."}}'
        if (bucket, name) in self.objects:
            return 412, b'{"error": {"message": "At least one of the pre-conditions did not hold."}}'
        self.objects[bucket, name] = content
        return 200, b"{}"

    def get(self, bucket: str, name: str, query: dict[str, list[str]], span: str) -> Answer:
        """The object's bytes or those of the range; without `alt=media` what is known of it."""
        found = self.objects.get((bucket, name))
        if found is None:
            return 404, b"No such object"
        if "alt" not in query:
            return 200, json.dumps(self._described(bucket, name)).encode()
        assert query["alt"] == ["media"]
        if not span:
            return 200, found
        self.ranges.append((name, span))
        first, _, last = span.removeprefix("bytes=").partition("-")
        part = found[int(first) : int(last) + 1 if last else None]
        return (206, part) if part else (416, b"The requested range cannot be satisfied.")

    def list(self, bucket: str, query: dict[str, list[str]]) -> Answer:
        """Two objects a page, in the order of their names."""
        if bucket not in self.buckets:
            return 404, b"No such bucket"
        (prefix,), (token,) = query.get("prefix", [""]), query.get("pageToken", [""])
        names = sorted(n for b, n in self.objects if b == bucket and n.startswith(prefix) and n > token)
        page: dict[str, Any] = {"items": [self._described(bucket, name) for name in names[:2]]}
        if len(names) > 2:
            page["nextPageToken"] = names[1]
        return 200, json.dumps(page).encode()

    def describe(self, bucket: str) -> Answer:
        """The bucket itself; Google's client asks for it beside the reads."""
        if bucket not in self.buckets:
            return 404, b"No such bucket"
        return 200, json.dumps({"id": bucket, "name": bucket}).encode()

    def _described(self, bucket: str, name: str) -> dict[str, Any]:
        known = {"bucket": bucket, "name": name, "updated": "2024-01-02T03:04:05.678Z"}
        known["size"] = str(len(self.objects[bucket, name]))
        if encoding := self.encodings.get((bucket, name)):
            known["contentEncoding"] = encoding
        return known

    def _handler(outer) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the handler has a self of its own
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                # Google's own client reads contents by a path of their own.
                _, storage, v1, b, bucket, *name = parts.path.removeprefix("/download").split("/")
                assert (storage, v1, b, *name[:1]) in {("storage", "v1", "b"), ("storage", "v1", "b", "o")}
                outer.bearers.add(self.headers.get("Authorization", ""))
                query, span = parse_qs(parts.query), self.headers.get("Range", "")
                if len(name) == 2:
                    key = bucket, unquote(name[1])
                    encoding = outer.encodings.get(key) if "alt" in query else None
                    self._answer(lambda: outer.get(*key, query, span), encoding)
                elif name:
                    self._answer(lambda: outer.list(bucket, query))
                else:
                    self._answer(lambda: outer.describe(bucket))

            def do_POST(self) -> None:
                parts = urlsplit(self.path)
                content = self.rfile.read(int(self.headers["Content-Length"]))
                if parts.path == "/token":
                    token = {"access_token": "a-token", "expires_in": 3600, "token_type": "Bearer"}
                    self._answer(lambda: (200, json.dumps(token).encode()))
                    return
                _, upload, storage, v1, b, bucket, o = parts.path.split("/")
                assert (upload, storage, v1, b, o) == ("upload", "storage", "v1", "b", "o")
                self._answer(lambda: outer.insert(bucket, parse_qs(parts.query), content))

            def _answer(self, act: Callable[[], Answer], encoding: str | None = None) -> None:
                outer.calls += 1
                step = outer.script.pop(0) if outer.script else None
                status, body = (step, b"scripted") if isinstance(step, int) else act()
                if step == "lost":
                    self.close_connection = True
                    return
                self.send_response(status)
                if encoding and status < 400:
                    self.send_header("Content-Encoding", encoding)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
