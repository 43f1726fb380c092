"""What schemathesis cannot know of our interface: NDJSON, and which right requests may be refused, and why.

schemathesis imports this file by its path, into an environment of its own; only that runs it.
"""

import json

import schemathesis

_PAGE_TOKEN = {"invalid_page_token"}  # a token is the word of an earlier answer: no schema knows those
_LAUNCH = {
    "invalid_request",  # bounds that belong together, and what the settings allow: max_workers, images, ...
    "unknown_pipeline",  # pipelines come from the settings
    "invalid_parameters",  # the template says which there are
}
_EVENT = {
    "invalid_encoding",  # a body that is not packed as its Content-Encoding says
    "date_invalid",  # RFC 3339 knows a leap second, and offsets that lead out of the years 1 to 9999
    "date_in_future",
}
_BATCH = {"invalid_batch", "empty_batch", "batch_too_large", "empty_body", "invalid_utf8"}
# The codes with which a request may be refused that is right by the schema: rules that no schema can say.
REFUSALS = {
    "GET /jobs": _PAGE_TOKEN,
    "GET /jobs/{job_id}/messages": _PAGE_TOKEN | {"invalid_request"},  # attempts that the job does not have
    "GET /jobs/{job_id}/metrics": {"invalid_request"},
    "GET /dead-letters": _PAGE_TOKEN,
    "GET /dead-letters/replays": _PAGE_TOKEN,
    "POST /jobs": _LAUNCH | {"idempotency_mismatch"},
    "POST /jobs/{job_id}/update": _LAUNCH | {"idempotency_mismatch"},
    "POST /jobs/{job_id}/drain": {"idempotency_mismatch"},
    "POST /jobs/{job_id}/cancel": {"idempotency_mismatch"},
    "POST /jobs/{job_id}/force-cancel": {"idempotency_mismatch"},
    "PATCH /jobs/{job_id}/autoscaling": {"invalid_request", "idempotency_mismatch"},  # min above max
    "POST /events/signin": _EVENT,
    # OpenAPI 3.1 cannot say what the lines of a text are; and ids of events may be repeated.
    "POST /events/signin/batch": _EVENT | _BATCH,
}


@schemathesis.serializer("application/x-ndjson")
def lines(ctx, value):
    """Sends the text as it is."""
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else json.dumps(value).encode()


@schemathesis.check
def refusals_have_a_reason(ctx, response, case):
    """A request that is right by the schema is refused for nothing but the rules that no schema can say."""
    if (
        case.meta is None
        or not case.meta.generation.mode.is_positive
        or response.status_code not in (400, 422)
    ):
        return
    code = response.json()["code"]
    allowed = REFUSALS.get(case.operation.label, set())
    assert code in allowed, f"{code} is none of {sorted(allowed)}"
