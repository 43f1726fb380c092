"""Each kind of key and token that a caller may show, and what it is answered with."""

from __future__ import annotations

import base64
import hmac
import json
import time

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from service.auth import key_store, keys, scopes
from service.models import utc_now
from tests.cloud_run import for_cloud_run, without_signature
from tests.doors import bearer, make_key, new_ec_key


async def credentials(database, wanted):
    """A credential of each kind for a route that wants this scope, and what it is answered with."""
    other = scopes.EVENTS_WRITE if wanted != scopes.EVENTS_WRITE else scopes.JOBS_WRITE
    right = await make_key(database, wanted or scopes.EVENTS_WRITE, name=f"right-{wanted.replace(':', '-')}")
    wrong = await make_key(database, other, name=f"wrong-{wanted.replace(':', '-')}")
    expired = await make_key(database, scopes.ADMIN, name="expired", lifetime=-1)
    revoked = await make_key(database, scopes.ADMIN, name=f"revoked-{wanted.replace(':', '-')}")
    await key_store.revoke(database, revoked.row.id, utc_now(), "test")
    unknown = keys.generate("unknown", frozenset({scopes.ADMIN}), utc_now(), None)
    other_secret = f"signin_{right.row.id}_{unknown.text[-43:]}"
    refused = (401, "invalid_credentials")
    malformed = {
        "nothing after the scheme": bearer(""),
        "no key at all": bearer("nonsense"),
        "no key at all, in the other header": {"X-API-Key": "nonsense"},
        "a word too much": bearer(f"{right.text} {right.text}"),
        "cut short": bearer(right.text[:-1]),
        "bytes that are no text": {"X-API-Key": b"signin_\xff\xfe"},
        "hidden behind a wrong one": bearer(right.text) | {"X-API-Key": wrong.text[:-1]},
    }
    return {name: (headers, refused) for name, headers in malformed.items()} | {
        "no key": ({}, (401, "authentication_required")),
        "another scheme": ({"Authorization": "Basic eDp5"}, (401, "authentication_required")),
        "unknown": (bearer(unknown.text), refused),
        "another's secret": (bearer(other_secret), refused),
        "expired": (bearer(expired.text), refused),
        "revoked": (bearer(revoked.text), refused),
        "wrong scope": (bearer(wrong.text), (403, "insufficient_scope")),
        "wrong scope, in the other header": ({"X-API-Key": wrong.text}, (403, "insufficient_scope")),
        "right": (bearer(right.text), None),
        "right, with the scheme in capitals": ({"Authorization": f"BEARER {right.text}"}, None),
        "right, in the other header": ({"X-API-Key": right.text}, None),
        "right, beside what is for Cloud Run": (bearer(right.text) | for_cloud_run("nonsense"), None),
        "right, where Cloud Run alone looks": (for_cloud_run(right.text), (401, "authentication_required")),
        "wrong scope, the right one where Cloud Run looks": (
            bearer(wrong.text) | for_cloud_run(right.text),
            (403, "insufficient_scope"),
        ),
    }


def tokens(issuer, turned_over):
    """A token of each kind, and what it is answered with."""
    now = time.time()
    stranger = rsa.generate_private_key(65537, 2048)
    public_bytes = (
        issuer.private["first"]
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    refused = (401, "invalid_credentials")
    return {
        "right": (issuer.token(), None),
        "right, audience in a list": (issuer.token(aud=["x", "https://signin.example"]), None),
        "no scope": (issuer.token(sub="mallory"), (403, "insufficient_scope")),
        "email not verified": (
            issuer.token(sub="x", email="ci@example.com"),
            (403, "insufficient_scope"),
        ),
        "wrong issuer": (issuer.token(iss="https://accounts.example"), refused),
        "wrong audience": (issuer.token(aud="https://other.example"), refused),
        "another's signature": (issuer.token(key=stranger), refused),
        "unknown key": (issuer.token(kid="second", key=stranger), refused),
        "signed with a key that was turned over": (issuer.token("old", key=turned_over), refused),
        "signed with the key in its place": (issuer.token("new"), None),
        "algorithm of the same family": (issuer.token(algorithm="RS512"), refused),
        "algorithm PS256": (issuer.token(algorithm="PS256"), refused),
        "ES256 under an RSA key's id": (issuer.token(key=new_ec_key()), refused),
        "HS256 with the public key": (forged(issuer, "HS256", public_bytes), refused),
        "none": (forged(issuer, "none", b""), refused),
        "an algorithm that is no text": (encoded(b'{"alg": []}') + ".e30.e30", refused),
        "expired": (issuer.token(exp=now - 5), refused),
        "not yet": (issuer.token(nbf=now + 60), refused),
        "issued in the future": (issuer.token(iat=now + 60), refused),
        "without exp": (issuer.token(without=["exp"]), refused),
        "without aud": (issuer.token(without=["aud"]), refused),
        "without sub": (issuer.token(without=["sub"]), refused),
        "cut short": (issuer.token()[:-8], refused),
        "cut by Cloud Run": (without_signature(issuer.token()), refused),
        "three dots": ("a.b.c", refused),
        "too large": ("e" * 9000, refused),
    }


def forged(issuer, algorithm, secret):
    """A token that is signed with what everybody knows, or with nothing."""
    import hashlib

    header, payload = issuer.token().split(".")[:2]
    header = encoded(json.dumps({"alg": algorithm, "typ": "JWT", "kid": "first"}).encode())
    signed = f"{header}.{payload}"
    signature = hmac.new(secret, signed.encode(), hashlib.sha256).digest() if secret else b""
    return f"{signed}.{encoded(signature)}"


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
