"""What a launch may ask for, and what is refused before Dataflow is called."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from pydantic import ValidationError

from service import template_specs
from service.config import Settings
from service.google_rest import MOST_BYTES
from tests.job_world import STRICT_TEMPLATE, TEMPLATE, World, make_world

METADATA = Path(__file__).parents[1] / "pipeline" / "template.json"


@pytest.fixture
async def checked(tmp_path, migrated_sqlite):
    """A world whose pipeline has the real template's rules; one database is enough for them."""
    database = tmp_path / "checked.db"
    database.write_bytes(migrated_sqlite.read_bytes())
    async with make_world(tmp_path, f"sqlite:///{database}", template_metadata=METADATA) as world:
        yield world


async def refused(world: World, body: object, code: str) -> list[str]:
    """The fields that are named; nothing was stored and Dataflow was not called."""
    answer = await world.http.post("/jobs", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
    assert (await world.http.get("/jobs")).json()["jobs"] == []
    assert world.calls() == {}
    return [error["field"] for error in answer.json()["errors"]]


async def test_parameters_are_checked_against_the_template_before_any_call(checked):
    for name, value in (
        ("colour", "red"),
        ("input_subscription", "short"),
        ("output_table", "no_dataset"),
        ("create_disposition", "SOMETIMES"),
        ("write_method", "STORAGE_WRITE_API"),
    ):
        fields = await refused(checked, {"parameters": {name: value}}, "invalid_parameters")
        assert fields == [f"body.parameters.{name}"]


async def test_a_parameter_that_the_template_requires_is_missed(tmp_path, migrated_sqlite):
    metadata = tmp_path / "required.json"
    parameters = [{"name": name} for name in ("input_subscription", "output_table", "dead_letter_table")]
    metadata.write_text(json.dumps({"metadata": {"parameters": [*parameters, {"name": "wanted"}]}}))
    database = tmp_path / "checked.db"
    database.write_bytes(migrated_sqlite.read_bytes())
    async with make_world(tmp_path, f"sqlite:///{database}", template_metadata=metadata) as world:
        assert await refused(world, {}, "invalid_parameters") == ["body.parameters.wanted"]


BEYOND_LIMITS = [
    ({"max_workers": 6}, "max_workers"),
    ({"num_workers": 4, "max_workers": 3}, "num_workers"),
    ({"num_workers": 6}, "num_workers"),
    ({"num_workers": "3"}, "num_workers"),
    ({"machine_type": "N1-standard"}, "machine_type"),
    ({"worker_region": "us-central1", "worker_zone": "us-central1-a"}, "worker_zone"),
    ({"worker_region": "us-central1-a"}, "worker_region"),
    ({"subnetwork": "default"}, "subnetwork"),
    ({"temp_location": "/tmp"}, "temp_location"),
    ({"kms_key_name": "key"}, "kms_key_name"),
    ({"ip_configuration": "WORKER_IP_SECRET"}, "ip_configuration"),
    ({"additional_experiments": ["--runner=x"]}, "additional_experiments"),
    ({"additional_experiments": ["e"] * 51}, "additional_experiments"),
    ({"additional_user_labels": {"Team": "a"}}, "additional_user_labels"),
    ({"additional_user_labels": {"team": "A"}}, "additional_user_labels"),
    ({"additional_user_labels": {f"k{n}": "" for n in range(49)}}, "additional_user_labels"),
    ({"additional_user_labels": {"signin-launch-token": "stolen"}}, "additional_user_labels"),
    ({"additional_user_labels": {"force_cancel_job": "true"}}, "additional_user_labels"),
    ({"sdk_container_image": "example.com/evil"}, "sdk_container_image"),
    ({"service_account_email": "owner@example.com"}, "service_account_email"),
    ({"flexrs_goal": "FLEXRS_COST_OPTIMIZED"}, "flexrs_goal"),
]


async def test_an_environment_beyond_its_limits_is_refused_with_the_field(checked):
    for environment, field in BEYOND_LIMITS:
        fields = await refused(checked, {"environment": environment}, "invalid_request")
        assert fields, environment
        assert all(each.startswith(f"body.environment.{field}") for each in fields), environment


async def test_the_whole_environment_arrives_at_dataflow(tmp_path, database_url):
    allowed = {"sdk_container_image": ["docker.io/ours/*"], "machine_type": ["n2-*", "e2-*"]}
    async with make_world(tmp_path, database_url, allowed_environment=allowed, max_workers=9) as world:
        asked = {
            "num_workers": 2,
            "max_workers": 8,
            "machine_type": "n2-standard-4",
            "launcher_machine_type": "e2-small",
            "disk_size_gb": 30,
            "worker_zone": "us-central1-a",
            "network": "default",
            "subnetwork": "regions/us-central1/subnetworks/default",
            "ip_configuration": "WORKER_IP_PRIVATE",
            "service_account_email": "worker@signin-local.iam.gserviceaccount.com",
            "kms_key_name": "projects/p/locations/l/keyRings/r/cryptoKeys/k",
            "temp_location": "gs://bucket/temp",
            "staging_location": "gs://bucket/staging",
            "sdk_container_image": "docker.io/ours/image:1",
            "additional_experiments": ["enable_recommendations"],
            "additional_user_labels": {"team": "identity"},
            "enable_streaming_engine": True,
            "streaming_mode": "STREAMING_MODE_AT_LEAST_ONCE",
            "autoscaling_algorithm": "AUTOSCALING_ALGORITHM_BASIC",
        }
        job = await world.launch(environment=asked)
        [launched] = world.server._fleet.jobs.values()
        environment = launched.launch.environment
        labels = asked.pop("additional_user_labels")
        for name, value in asked.items():
            seen = getattr(environment, name)
            if name in ("ip_configuration", "streaming_mode", "autoscaling_algorithm"):
                enum = environment.DESCRIPTOR.fields_by_name[name].enum_type
                seen = enum.values_by_number[seen].name
            assert (list(seen) if isinstance(value, list) else seen) == value, name
        assert dict(environment.additional_user_labels).items() >= labels.items()
        assert job["environment"] == asked
        assert job["labels"]["team"] == "identity"
        refusal = await world.http.post("/jobs", json={"environment": {"machine_type": "m3-ultramem-128"}})
        assert refusal.status_code == 422


async def test_validate_only_launches_nothing_and_tells_what_would_be(checked):
    answer = await checked.http.post(
        "/jobs?validate_only=true", json={"environment": {"num_workers": 2}, "name": "dry"}
    )
    shown = answer.json()
    assert (answer.status_code, shown["valid"], shown["template_checked"]) == (200, True, True)
    assert shown["environment"] == {"max_workers": 5, "num_workers": 2}
    assert shown["subscription"].endswith("/subscriptions/user-signin-bigquery")
    assert shown["labels"] == {"signin-pipeline": "user-signin"}
    assert checked.calls() == {}
    assert (await checked.http.get("/jobs")).json()["jobs"] == []


@pytest.mark.parametrize("body", [{"parameters": {"colour": "red"}}, {"environment": {"max_workers": 99}}])
async def test_validate_only_refuses_as_the_launch_would(checked, body):
    dry = await checked.http.post("/jobs?validate_only=true", json=body)
    wet = await checked.http.post("/jobs", json=body)
    assert (dry.status_code, dry.json()) == (wet.status_code, wet.json())


async def test_validate_only_sees_a_subscription_in_use(checked):
    job = await checked.launch()
    answer = await checked.http.post("/jobs?validate_only=true", json={})
    assert (answer.status_code, answer.json()["job_id"]) == (409, job["id"])


async def test_a_pipeline_of_the_settings_is_launched_with_its_own_values(tmp_path, database_url):
    audit = {
        "template_path": TEMPLATE,
        "parameters": {"input_subscription": "projects/p-1234/subscriptions/audit"},
        "environment": {"machine_type": "e2-medium", "additional_user_labels": {"team": "audit"}},
    }
    async with make_world(tmp_path, database_url, pipelines={"audit": audit}) as world:
        job = await world.launch(pipeline="audit", name="audit")
        assert job["pipeline"] == "audit"
        assert job["parameters"] == audit["parameters"]
        assert job["environment"] == {"max_workers": 5, "machine_type": "e2-medium"}
        assert job["labels"].items() >= {"signin-pipeline": "audit", "team": "audit"}.items()
        unknown = await world.http.post("/jobs", json={"pipeline": "other"})
        assert "audit, backfill-signin, user-signin" in unknown.json()["detail"]


def test_pipelines_come_from_the_environment_as_json(monkeypatch):
    monkeypatch.setenv("SIGNIN_PIPELINES", '{"audit": {"template_path": "gs://b/audit.json"}}')
    monkeypatch.setenv("SIGNIN_ALLOWED_ENVIRONMENT", "{}")
    settings = Settings(_env_file=None)
    assert settings.pipelines["audit"].template_path == "gs://b/audit.json"
    assert settings.allowed_environment == {}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SIGNIN_ALLOWED_ENVIRONMENT", '{"sdk_image": []}'),
        ("SIGNIN_PIPELINES", '{"audit": {"template_path": "/tmp/audit.json"}}'),
        ("SIGNIN_PIPELINES", '{"audit": {"template_path": "gs://b/a", "environment": {"zone": "a"}}}'),
    ],
)
def test_settings_of_launches_that_make_no_sense_are_refused_at_the_start(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValidationError):
        Settings(_env_file=None)


class Bucket(ThreadingHTTPServer):
    """Serves objects as Cloud Storage's JSON interface does."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ObjectRequest)
        self.objects: dict[str, bytes] = {}
        self.gets = 0
        self.released = threading.Event()
        self.released.set()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return super().__enter__()

    def __exit__(self, *error):
        self.shutdown()
        super().__exit__(*error)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class ObjectRequest(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.gets += 1
        address = urlsplit(self.path)
        self.server.released.wait()
        bucket, name = address.path.removeprefix("/storage/v1/b/").split("/o/")
        content = self.server.objects.get(f"gs://{bucket}/{unquote(name)}")
        is_media = "alt=media" in address.query
        self.send_response(200 if content and is_media else 404)
        self.end_headers()
        self.wfile.write(content or b"{}")

    def log_message(self, *_: object) -> None:
        pass


async def test_the_spec_in_the_bucket_is_read_once_and_judges_the_parameters(tmp_path, database_url):
    with Bucket() as bucket:
        metadata = json.loads(METADATA.read_text())
        bucket.objects[TEMPLATE] = json.dumps({"image": "i", "metadata": metadata}).encode()
        async with make_world(tmp_path, database_url, storage_endpoint=bucket.url) as world:
            for _ in range(3):
                fields = await refused(world, {"parameters": {"colour": "red"}}, "invalid_parameters")
                assert fields == ["body.parameters.colour"]
            assert bucket.gets == 1


UNREADABLE = {
    "missing": None,
    "no JSON": b"no JSON",
    "another form": b'{"metadata": {"parameters": 5}}',
    "not UTF-8": b'{"metadata": {"parameters": [{"name": "\xff"}]}}',
    "without metadata, which are optional": b'{"image": "i", "sdkInfo": {"language": "PYTHON"}}',
    "too large": b" " * (MOST_BYTES + 1) + b"{}",
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
async def test_without_a_readable_spec_dataflow_is_the_judge(tmp_path, database_url, content):
    with Bucket() as bucket:
        if content:
            bucket.objects[STRICT_TEMPLATE] = content
        values = {"storage_endpoint": bucket.url, "template_path": STRICT_TEMPLATE}
        async with make_world(tmp_path, database_url, **values) as world:
            dry = await world.http.post("/jobs?validate_only=true", json={})
            assert dry.json()["template_checked"] is False
            answer = await world.http.post("/jobs", json={"parameters": {"colour": "red"}})
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameters")
            assert [error["field"] for error in answer.json()["errors"]] == ["body.parameters.colour"]
            assert world.calls()["LaunchFlexTemplate"] == 1


async def test_a_bucket_that_does_not_answer_keeps_no_job_from_its_launch(
    tmp_path, database_url, monkeypatch
):
    monkeypatch.setattr(template_specs, "FETCH_DEADLINE_SECONDS", 0.2)
    with Bucket() as bucket:
        bucket.released.clear()
        try:
            async with make_world(tmp_path, database_url, storage_endpoint=bucket.url) as world:
                job = await world.launch()
                await world.until(job["id"], "RUNNING")
        finally:
            bucket.released.set()
