"""Spans: which there are, what they say and what they never say, and that there are none unless asked for."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager

import pytest
from opentelemetry import propagate
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service.app import create_app
from service.config import Settings
from service.local.faults import Fault
from service.spans import Traces
from tests.serving import ARTICLE, JSON, pubsub_with_topic, running, settings_for
from transforms import telemetry_export, trace_context

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
UNSAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-00"}
PUBLISH = "google.pubsub.v1.Publisher/Publish"
SEND = "send topic-user-signin"


class Seen:
    """What was exported, in the order of the ends."""

    def __init__(self):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    @property
    def spans(self):
        return list(self.exporter.get_finished_spans())

    def named(self, name):
        return [span for span in self.spans if span.name == name]

    def one(self, name):
        (span,) = self.named(name)
        return span


def span_id(span):
    return f"{span.context.span_id:016x}"


def parent_id(span):
    return f"{span.parent.span_id:016x}"


@asynccontextmanager
async def traced(settings):
    """A client of the service, and what it exported."""
    seen = Seen()
    async with running(create_app(settings, traces=Traces(settings, seen.provider))) as client:
        yield client, seen


async def test_the_messages_of_a_batch_are_one_span_that_each_of_them_carries(tmp_path):
    body = (
        b'[{"userid": "1", "date": "2017-10-17T20:57:17Z"}, {"userid": "2", "date": "2017-10-17T20:57:17Z"}]'
    )
    async with pubsub_with_topic(tmp_path) as (_, settings, reader), traced(settings) as (client, seen):
        headers = JSON | SAMPLED | {"tracestate": "a=1"}
        assert (await client.post("/events/signin/batch", content=body, headers=headers)).status_code == 202
        carried = [dict(message.attributes) for message in await reader.pull(2)]
    send, publish, request = seen.one(SEND), seen.one(PUBLISH), seen.one("POST /events/signin/batch")
    assert [send.kind, publish.kind, request.kind] == [SpanKind.PRODUCER, SpanKind.CLIENT, SpanKind.SERVER]
    assert {each["traceparent"] for each in carried} == {f"00-{TRACE}-{span_id(send)}-01"}
    assert {each["tracestate"] for each in carried} == {"a=1"}
    assert (parent_id(request), parent_id(send), parent_id(publish)) == (
        *(CALLER, span_id(request), span_id(send)),
    )
    assert dict(send.attributes) == {
        "messaging.system": "gcp_pubsub",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "topic-user-signin",
        "messaging.batch.message_count": 2,
        "signin.failed": 0,
    }
    assert publish.attributes["rpc.system.name"] == "grpc"
    assert publish.attributes["rpc.response.status_code"] == "OK"
    assert publish.attributes["messaging.batch.message_count"] == 2


async def test_a_publish_call_for_several_requests_belongs_to_one_and_links_to_the_others(tmp_path):
    async with pubsub_with_topic(tmp_path) as (_, settings, _reader), traced(settings) as (client, seen):
        app = client._transport.app
        await client.post("/events/signin", content=ARTICLE, headers=JSON | UNSAMPLED)
        assert seen.spans == []
        traces, topic = app.state.traces, app.state.publisher._topic
        spans = [traces.sending(1) for _ in range(3)]
        messages = [(b"x", span.carried({})) for span in spans]
        await topic.publish([*messages, (b"y", UNSAMPLED), (b"z", {})], 5.0)
    publish = seen.one(PUBLISH)
    first, *others = [trace_context.parse(attributes["traceparent"]) for _, attributes in messages]
    assert parent_id(publish) == first.span_id
    assert [f"{link.context.span_id:016x}" for link in publish.links] == [other.span_id for other in others]
    assert publish.attributes["messaging.batch.message_count"] == 5


async def test_without_a_caller_the_sampler_decides_and_the_messages_say_what_it_decided(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    async with pubsub_with_topic(tmp_path) as (_, settings, reader), traced(settings) as (client, seen):
        await client.post("/events/signin", content=ARTICLE, headers=JSON)
        await client.post("/events/signin", content=ARTICLE, headers=JSON | SAMPLED)
        parents = [trace_context.parse(each.attributes["traceparent"]) for each in await reader.pull(2)]
    assert [parent.sampled for parent in sorted(parents, key=lambda each: each.trace_id == TRACE)] == [
        *(False, True)
    ]
    assert {span.context.trace_id for span in seen.spans} == {int(TRACE, 16)}


async def test_a_failing_call_and_a_refused_event_are_errors_with_their_codes(tmp_path):
    async with pubsub_with_topic(tmp_path) as (server, settings, _reader), traced(settings) as (client, seen):
        server.faults.set([Fault(method="Publish", code="INVALID_ARGUMENT")])
        answer = await client.post("/events/signin", content=ARTICLE, headers=JSON)
    problem = answer.json()
    publish, send = seen.one(PUBLISH), seen.one(SEND)
    request = seen.one("POST /events/signin")
    assert publish.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert send.attributes["error.type"] == problem["code"]
    assert request.attributes["error.type"] == str(problem["status"])
    assert request.attributes["http.response.status_code"] == problem["status"]
    assert {span.status.status_code for span in (publish, send, request)} == {StatusCode.ERROR}


async def test_a_request_without_a_route_is_no_error_and_a_probe_no_span(tmp_path):
    async with traced(settings_for(tmp_path)) as (client, seen):
        for path in ("/healthz", "/metrics", "/nowhere?userid=hidden"):
            await client.get(path)
        (span,) = [each for each in seen.spans if each.kind is SpanKind.SERVER]
    assert span.name == "GET"
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes) == {
        "http.request.method": "GET",
        "url.path": "/nowhere",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "localhost",
        "http.response.status_code": 404,
    }


def test_the_propagators_of_the_environment_read_the_callers_headers(monkeypatch):
    monkeypatch.setattr(propagate, "get_global_textmap", lambda: CompositePropagator([]))
    seen = Seen()
    scope = {"path": "/x", "method": "GET", "scheme": "http", "http_version": "1.1"}
    headers = {b"traceparent": SAMPLED["traceparent"].encode()}
    Traces(Settings(_env_file=None), seen.provider).request(scope, headers).end(scope, 200)
    assert seen.one("GET").parent is None


async def test_a_tick_and_its_calls_of_dataflow_are_one_trace(world):
    seen = Seen()
    traces = Traces(world.settings, seen.provider)
    world.dataflow._traces = traces
    world.reconciler._traces = traces
    await world.insert(dataflow_job_id="2026-unknown", state="RUNNING")
    world.fail(Fault(method="ListJobs", code="PERMISSION_DENIED"))
    await world.reconciler.tick_alone()
    tick, call = seen.one("reconcile"), seen.named("google.dataflow.v1beta3.JobsV1Beta3/ListJobs")[0]
    assert (tick.kind, call.kind) == (SpanKind.INTERNAL, SpanKind.CLIENT)
    assert parent_id(call) == span_id(tick)
    assert call.attributes["rpc.method"] == call.name
    assert call.attributes["error.type"] == "PERMISSION_DENIED"


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({}, []),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, []),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4318/v1/metrics"}, []),
        ({"OTEL_TRACES_EXPORTER": "otlp, console"}, ["otlp", "console"]),
        ({"OTEL_SERVICE_NAME": "mine", "OTEL_TRACES_SAMPLER": "always_on"}, []),
    ],
)
def test_the_standard_variables_say_whether_there_are_spans(variables, names):
    assert telemetry_export.exporter_names("traces", variables) == names


def test_a_protocol_or_an_exporter_that_is_not_there_is_told_and_left_out(monkeypatch, caplog):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp,zipkin")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    assert telemetry_export.tracer_provider("x") is None
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_what_the_environment_says_of_the_resource_wins(monkeypatch):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=prod,service.version=9")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    found = telemetry_export.resource("signin", **{"service.version": "1"}).attributes
    assert (found["service.name"], found["service.version"]) == ("mine", "9")
    assert found["deployment.environment"] == "prod"


def test_a_receiver_that_hangs_does_not_hold_up_the_end(caplog):
    release = threading.Event()

    class Hanging(InMemorySpanExporter):
        def export(self, spans):
            release.wait(10)

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Hanging()))
    provider.get_tracer("x").start_span("x").end()
    telemetry_export.close(provider, 0.05)
    release.set()
    assert "could not be sent" in caplog.text
