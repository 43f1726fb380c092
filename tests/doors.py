"""A service whose door is shut, keys for it, and an issuer of tokens: an HTTP server with keys of its own."""

from __future__ import annotations

import json
import threading
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from service.app import create_app
from service.auth import key_store, keys
from service.models import utc_now
from tests.serving import running, settings_for

AUDIENCE = "https://signin.example"


@asynccontextmanager
async def shut(tmp_path, database_url, **values):
    """The service as it is on an address that others can reach; yields its app and a client."""
    values.setdefault("host", "0.0.0.0")
    app = create_app(settings_for(tmp_path, database_url=database_url, **values))
    async with running(app) as client:
        yield app, client


async def make_key(database, *scopes, name="tester", lifetime=None):
    """A key in the database; `lifetime` in seconds may be over already."""
    now = utc_now()
    expires_at = None if lifetime is None else now + timedelta(seconds=lifetime)
    new = keys.generate(name, frozenset(scopes), now, expires_at)
    await key_store.insert(database, new.row, now, "test")
    return new


def bearer(credential):
    return {"Authorization": f"Bearer {credential}"}


class Issuer:
    """An OpenID Connect issuer: its discovery document, its keys, and tokens signed with them.

    While `may_answer` is not set it takes connections and answers nothing.
    """

    def __init__(self):
        self.private = {"first": rsa.generate_private_key(65537, 2048)}
        self.requests = 0  # also those that have no answer yet
        self.fetches = 0
        self.answer = 200
        self.may_answer = threading.Event()
        self.may_answer.set()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                issuer.requests += 1
                issuer.may_answer.wait(60)
                body = json.dumps(issuer.document(self.path)).encode()
                with suppress(ConnectionError):  # who asked has gone away
                    self.send_response(issuer.answer)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def document(self, path):
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        self.fetches += 1
        return {"keys": [public(kid, key) for kid, key in self.private.items()]}

    def settings(self, scopes=None, **values):
        rules = {"sub=alice": ["admin"], "email=ci@example.com": ["jobs:read"]}
        return {
            "oidc_issuer": self.url,
            "oidc_audience": AUDIENCE,
            "oidc_scopes": json.dumps(rules if scopes is None else scopes),
            "oidc_leeway_seconds": 1.0,
        } | values

    def token(self, kid="first", key=None, algorithm=None, without=(), **claims):
        now = time.time()
        held = {"iss": self.url, "aud": AUDIENCE, "sub": "alice", "iat": now - 5, "exp": now + 60} | claims
        for name in without:
            del held[name]
        key = key or self.private[kid]
        algorithm = algorithm or ("RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256")
        return jwt.encode(held, key, algorithm=algorithm, headers={"kid": kid})

    @contextmanager
    def serving(self):
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self.may_answer.set()
            self._server.shutdown()
            thread.join()
            self._server.server_close()


def public(kid, key):
    kind = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return kind.to_jwk(key.public_key(), as_dict=True) | {"kid": kid, "use": "sig"}


def new_ec_key():
    return ec.generate_private_key(ec.SECP256R1())
