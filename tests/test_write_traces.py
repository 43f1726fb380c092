"""The spans of the write step, as a receiver of OTLP sees them."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage

from pipeline.options import OptionsError, parse
from tests.bigquery_servers import StrictBigQuery, failure, refusal
from tests.otlp_receiver import Receiver
from tests.running import clean_environment
from tests.write_servers import LETTERS, POLICY, TABLE, messages_of, run_pipeline
from transforms import trace_context, write_traces
from transforms.bigquery_write import WriteDeadLetters, WriteSignins
from transforms.write_traces import WriteTraces

SUBSCRIPTION = "projects/signin-local/subscriptions/user-signin-bigquery"
PROCESS = "process user-signin-bigquery"


def context(number, sampled=True):
    return f"00-{number:032x}-{number:016x}-{int(sampled):02x}"


def message(number, traceparent):
    return PubsubMessage(messages_of(number + 1)[number], {"traceparent": traceparent})


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver
        write_traces.close()


@pytest.fixture
def bigquery():
    with StrictBigQuery() as server:
        yield server


def exported(receiver):
    """The spans that were made, sorted by their trace."""
    write_traces.close()
    return sorted(receiver.spans, key=lambda span: span.trace_id)


def test_each_sampled_trace_of_a_request_has_one_span_of_the_write(bigquery, receiver):
    messages = [
        *(message(number, context(1)) for number in range(3)),
        message(3, context(2)),
        message(4, context(3, sampled=False)),
        message(5, "00-nonsense"),
        messages_of(1)[0],
    ]
    traces = WriteTraces(SUBSCRIPTION, receiver.url)
    run_pipeline(messages, WriteSignins(TABLE, emulator_host=bigquery.url, policy=POLICY, traces=traces))
    first, second = exported(receiver)
    assert (first.trace_id, first.parent_id) == (f"{1:032x}", f"{1:016x}")
    assert (second.trace_id, second.parent_id) == (f"{2:032x}", f"{2:016x}")
    assert (first.service, first.name, first.kind) == ("signin-pipeline", PROCESS, "CONSUMER")
    assert first.attributes == {
        "messaging.system": "gcp_pubsub",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "user-signin-bigquery",
        "messaging.destination.subscription.name": "user-signin-bigquery",
        "messaging.batch.message_count": 3,
        "db.system.name": "gcp.bigquery",
        "db.collection.name": str(TABLE),
    }
    assert second.attributes["messaging.batch.message_count"] == 1
    assert not first.failed


def test_a_write_that_fails_is_a_failed_span_and_so_is_a_dead_letter_with_its_reason(bigquery, receiver):
    traces = WriteTraces(SUBSCRIPTION, receiver.url)
    bigquery.script = [failure(403, "accessDenied")] * 100
    step = WriteSignins(TABLE, emulator_host=bigquery.url, policy=POLICY, traces=traces)
    with pytest.raises(Exception, match=r"accessDenied|scripted"):
        run_pipeline([message(0, context(1))], step)
    bigquery.script = [lambda rows: (200, {"insertErrors": [refusal(0, "invalid")]})]
    letters = run_pipeline([message(0, context(2))], step).letters
    bigquery.script = []
    run_pipeline(letters, WriteDeadLetters(LETTERS, emulator_host=bigquery.url, policy=POLICY, traces=traces))
    spans = exported(receiver)
    assert spans[0].failed
    written, buried = spans[-2:]
    assert {written.trace_id, buried.trace_id} == {f"{2:032x}"}
    assert buried.attributes["error.type"] == "row_refused"
    assert buried.attributes["db.collection.name"] == str(LETTERS)


def test_a_bundle_of_many_traces_has_a_bounded_number_of_spans():
    texts = [context(number) for number in range(1, 1000)]
    assert len(trace_context.sampled(texts)) == trace_context.MAX_CONTEXTS


def test_without_an_exporter_nothing_of_opentelemetry_is_imported():
    code = """
import pickle, sys
from transforms.write_traces import BY_ENVIRONMENT
with BY_ENVIRONMENT.of_messages([object()], "t"), BY_ENVIRONMENT.of_dead_letters([object()], "t"):
    pass
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_variables_that_no_exporter_takes_do_not_keep_rows_from_being_written(bigquery, monkeypatch, caplog):
    write_traces.close()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "9999")  # more than the queue holds
    try:
        run_pipeline(messages_of(3), WriteSignins(TABLE, emulator_host=bigquery.url, policy=POLICY))
    finally:
        write_traces.close()
    assert len(bigquery.taken) == 3
    assert "no traces of what is written" in caplog.text


def test_the_endpoint_is_an_option_that_travels_to_the_workers():
    options = parse(["--project", "p-project", "--otlp_endpoint", "http://collector:4318"])
    assert pickle.loads(pickle.dumps(options.traces())) == WriteTraces("", "http://collector:4318")
    with pytest.raises(OptionsError, match="--otlp_endpoint"):
        parse(["--project", "p-project", "--otlp_endpoint", "collector:4318"])
