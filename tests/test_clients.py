"""Connections to Google's APIs or their emulators, and what happens without credentials."""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from service.clients import Clients, MissingCredentialsError
from service.config import Settings
from service.errors import ConfigError
from service.local.dataflow import DataflowServer
from tests.serving import pubsub_with_topic, settings_for

ROOT = Path(__file__).parent.parent


@pytest.fixture
def no_credentials(tmp_path, monkeypatch):
    """A machine on which nothing is configured and that is not in Google's cloud."""
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("PATH", str(tmp_path))


async def test_the_four_dataflow_clients_share_one_connection_to_the_emulator(tmp_path):
    async with DataflowServer(tmp_path / "dataflow") as server:
        clients = Clients(settings_for(tmp_path, dataflow_emulator_host=server.address))
        made = [
            await clients.dataflow_jobs(),
            await clients.dataflow_flex_templates(),
            await clients.dataflow_metrics(),
            await clients.dataflow_messages(),
        ]
        assert len({client.transport.grpc_channel for client in made}) == 1
        assert await clients.dataflow_jobs() is made[0]
        request = {"project_id": "signin-local", "location": "us-central1"}
        page = await made[0].list_jobs(request=request, timeout=5, retry=None)
        assert list(page.jobs) == []
        await clients.close()


async def test_callers_at_the_same_time_get_the_same_stub(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, _reader):
        clients = Clients(settings)
        stubs = await asyncio.gather(*(clients.pubsub() for _ in range(20)))
        assert all(stub is stubs[0] for stub in stubs)
        topic = await stubs[0].get_topic(
            stubs[0].GetTopicRequest(topic=settings.topic_path), timeout=5, metadata=stubs[0].metadata
        )
        assert topic.name == settings.topic_path
        await clients.close()


async def test_the_routing_header_names_the_topic(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, _reader):
        clients = Clients(settings)
        assert (await clients.pubsub()).metadata == (
            ("x-goog-request-params", "topic=projects%2Fsignin-local%2Ftopics%2Ftopic-user-signin"),
        )
        await clients.close()


async def test_a_server_that_is_far_away_is_reached(tmp_path):
    async def slow(reader, writer, address):
        async def carry(source, sink):
            while data := await source.read(65536):
                asyncio.get_running_loop().call_later(1.1, sink.write, data)

        far_reader, far_writer = await asyncio.open_connection(*address.split(":"))
        try:
            await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer))
        finally:
            far_writer.close()
            writer.close()

    async with pubsub_with_topic(tmp_path) as (server, near, _reader):
        proxy = await asyncio.start_server(lambda r, w: slow(r, w, server.address), "127.0.0.1", 0)
        port = proxy.sockets[0].getsockname()[1]
        clients = Clients(near.model_copy(update={"pubsub_emulator_host": f"127.0.0.1:{port}"}))
        stub = await clients.pubsub()
        request = stub.GetTopicRequest(topic=near.topic_path)
        assert (await stub.get_topic(request, timeout=10, metadata=stub.metadata)).name == near.topic_path
        await clients.close()
        proxy.close()


async def test_missing_credentials_name_the_commands_that_help(no_credentials):
    clients = Clients(Settings(_env_file=None, project="my-project"))
    with pytest.raises(MissingCredentialsError) as caught:
        await clients.pubsub()
    assert isinstance(caught.value, ConfigError)
    assert "gcloud auth application-default login" in str(caught.value)
    assert "signin up" in str(caught.value)
    await clients.close()


async def test_a_search_for_credentials_that_hangs_is_given_up(monkeypatch):
    import google.auth

    monkeypatch.setattr("service.clients.CREDENTIALS_DEADLINE_SECONDS", 0.1)
    found = threading.Event()
    monkeypatch.setattr(google.auth, "default", lambda **_: found.wait(30))
    clients = Clients(Settings(_env_file=None, project="my-project"))
    started = time.monotonic()
    with pytest.raises(MissingCredentialsError, match=r"0\.1 s"):
        await clients.credentials()
    assert time.monotonic() - started < 10
    found.set()
    await clients.close()


async def test_credentials_that_appear_later_are_found(no_credentials, monkeypatch):
    import google.auth
    from google.auth.credentials import AnonymousCredentials

    clients = Clients(Settings(_env_file=None, project="my-project"))
    with pytest.raises(MissingCredentialsError):
        await clients.credentials()
    found = AnonymousCredentials()
    monkeypatch.setattr(google.auth, "default", lambda **_: (found, None))
    assert await clients.credentials() is found
    await clients.close()


async def test_a_caller_that_goes_away_does_not_disturb_the_others(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, _reader):
        clients = Clients(settings)
        first = asyncio.create_task(clients.pubsub())
        second = asyncio.create_task(clients.pubsub())
        await asyncio.sleep(0)
        first.cancel()
        assert await second
        await clients.close()


async def test_googles_own_endpoint_is_reached_over_tls_with_the_credentials(tmp_path):
    program = textwrap.dedent("""
        import asyncio, sys
        import google.auth, grpc
        from google.auth.credentials import Credentials
        from google.pubsub_v1 import types
        from service.clients import Clients
        from service.config import Settings

        class Token(Credentials):
            def refresh(self, request):
                self.token = "secret-token"

        google.auth.default = lambda **_: (Token(), None)

        async def get_topic(request, context):
            seen.update(dict(context.invocation_metadata()))
            return types.Topic.pb()(name=request.topic)

        async def main():
            server = grpc.aio.server()
            method = grpc.unary_unary_rpc_method_handler(
                get_topic, types.GetTopicRequest.pb().FromString, types.Topic.pb().SerializeToString
            )
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler("google.pubsub.v1.Publisher", {"GetTopic": method}),)
            )
            pair = open("key.pem", "rb").read(), open("certificate.pem", "rb").read()
            port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([pair]))
            await server.start()
            settings = Settings(_env_file=None, project="my-project", pubsub_endpoint=f"localhost:{port}")
            clients = Clients(settings)
            pubsub = await clients.pubsub()
            request = pubsub.GetTopicRequest(topic=settings.topic_path)
            await pubsub.get_topic(request, timeout=10, metadata=pubsub.metadata)
            print(seen["authorization"], seen["x-goog-request-params"])
            await clients.close()
            await server.stop(0)

        seen = {}
        asyncio.run(main())
    """)
    write_certificate(tmp_path)
    environment = os.environ | {
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(tmp_path / "certificate.pem"),
        "PYTHONPATH": str(ROOT),
    }
    for name in ("PUBSUB_EMULATOR_HOST", "DATAFLOW_EMULATOR_HOST"):
        environment.pop(name, None)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program), cwd=tmp_path, env=environment, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert output.decode().split() == [
        "Bearer",
        "secret-token",
        "topic=projects%2Fmy-project%2Ftopics%2Ftopic-user-signin",
    ]


def write_certificate(folder):
    """A key and a certificate of `localhost`, good for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
