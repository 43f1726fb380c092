"""`signin template`: specs are made, published once for ever, and judged before Dataflow judges them."""

from __future__ import annotations

import json

import pytest
from google.cloud.dataflow_v1beta3 import ContainerSpec
from typer.testing import CliRunner

from service.cli import template, template_store
from service.local.templates import Template
from tests.storage_server import StorageServer

DIGEST = "sha256:" + "0123456789abcdef" * 4
IMAGE = f"us-docker.pkg.dev/my-project/signin/pipeline@{DIGEST}"
OTHER = IMAGE[:-1] + "0"
PIPELINES = ("user-signin", "backfill-signin")


def signin(*words):
    return CliRunner().invoke(template.app, list(words))


def built(name="user-signin", image=IMAGE):
    done = signin("build", name, "--image", image)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def storage(monkeypatch):
    monkeypatch.setattr(template_store, "PAUSE_SECONDS", 0.01)
    with StorageServer("my-bucket") as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        yield server


@pytest.fixture(params=["bucket", "directory"])
def place(request, tmp_path):
    if request.param == "bucket":
        request.getfixturevalue("storage")
        return "gs://my-bucket/templates"
    return str(tmp_path / "templates")


@pytest.mark.parametrize("name", PIPELINES)
def test_a_spec_runs_workers_on_the_image_that_launches_them(name):
    spec = ContainerSpec.from_json(built(name), ignore_unknown_fields=False)
    assert spec.image == spec.default_environment.sdk_container_image == IMAGE
    assert spec.default_environment.max_workers == 5
    assert spec.default_environment.enable_streaming_engine is (name == "user-signin")
    assert spec.sdk_info.language.name == "PYTHON"
    assert spec.metadata.streaming is (name == "user-signin")


def test_the_local_dataflow_judges_parameters_by_the_same_spec(tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(built("backfill-signin"))
    assert [v.parameter for v in Template("", path).violations({"id_label": "x"})] == [
        "id_label",
        "input_files",
    ]
    assert Template("", path).violations({"input_files": "gs://bucket/x"}) == []


@pytest.mark.parametrize("image", ["pipeline:latest", "pipeline", f"pipeline@{DIGEST[:-1]}", ""])
def test_an_image_without_a_digest_is_refused(image):
    done = signin("build", "user-signin", "--image", image)
    assert done.exit_code == 1
    assert "digest" in done.stderr


def test_a_pipeline_that_does_not_exist_has_no_spec():
    assert "no pipeline" in signin("build", "../user-signin", "--image", IMAGE).stderr


def test_a_spec_is_written_to_a_file(tmp_path):
    path = tmp_path / "spec.json"
    assert signin("build", "user-signin", "--image", IMAGE, "--output", str(path)).exit_code == 0
    assert path.read_text() == built()
    refused = signin("build", "user-signin", "--image", IMAGE, "--output", str(tmp_path))
    assert refused.exit_code == 1
    assert str(tmp_path) in refused.stderr


def test_what_is_published_lies_under_its_version_and_can_be_read_again(place):
    done = signin("publish", "user-signin", "--image", IMAGE, "--to", place + "/")
    assert done.exit_code == 0, done.stderr
    path = done.stdout.strip()
    assert path == f"{place}/0.1.0-0123456789ab/user-signin.json"
    assert template_store.read(path).decode() == built()
    assert signin("validate", path).exit_code == 0


def test_the_same_spec_may_be_published_again_and_another_may_not(place):
    first = signin("publish", "user-signin", "--image", IMAGE, "--to", place, "--version", "7")
    again = signin("publish", "user-signin", "--image", IMAGE, "--to", place, "--version", "7")
    other = signin("publish", "user-signin", "--image", OTHER, "--to", place, "--version", "7")
    assert first.stdout == again.stdout
    assert "already" in again.stderr
    assert other.exit_code == 1
    assert "never changed" in other.stderr
    assert template_store.read(first.stdout.strip()).decode() == built()


def test_an_upload_whose_answer_is_lost_counts_as_done(storage):
    storage.script = ["lost"]
    done = signin("publish", "user-signin", "--image", IMAGE, "--to", "gs://my-bucket/t")
    assert done.exit_code == 0, done.stderr
    assert storage.calls == 3  # the lost one, the refused one, and the comparison
    assert len(storage.objects) == 1


def test_an_upload_outlasts_a_short_outage_and_gives_up_in_a_long_one(storage):
    storage.script = [503, 429, 500]
    assert signin("publish", "user-signin", "--image", IMAGE, "--to", "gs://my-bucket/t").exit_code == 0
    storage.script = [503] * 9
    done = signin("publish", "user-signin", "--image", OTHER, "--to", "gs://my-bucket/t")
    assert done.exit_code == 1
    assert "cannot be reached (status 503)" in done.stderr
    assert len(storage.script) == 9 - template_store.ATTEMPTS


@pytest.mark.parametrize(
    ("to", "sentence"),
    [
        ("gs://other-bucket/t", "bucket does not exist"),
        ("gs://", "gs://BUCKET/NAME"),
        ("/proc/none", "/proc"),
    ],
)
def test_a_place_that_cannot_be_used_is_told_as_a_sentence(to, sentence, storage):
    done = signin("publish", "user-signin", "--image", IMAGE, "--to", to)
    assert done.exit_code == 1
    assert sentence in done.stderr


def test_without_credentials_the_command_that_makes_them_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    done = signin("publish", "user-signin", "--image", IMAGE, "--to", "gs://my-bucket/t")
    assert done.exit_code == 1
    assert "gcloud auth application-default login" in done.stderr


def broken(change):
    spec = json.loads(built())
    change(spec)
    return json.dumps(spec)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "not a container spec"),
        (broken(lambda spec: spec.update(imgae="x")), "not a container spec"),
        (broken(lambda spec: spec.update(image="x:latest")), "names no digest"),
        (broken(lambda spec: spec["defaultEnvironment"].pop("sdkContainerImage")), "other code"),
        (broken(lambda spec: spec["defaultEnvironment"].pop("maxWorkers")), "maxWorkers"),
        (broken(lambda spec: spec["sdkInfo"].update(language="JAVA")), "PYTHON"),
        (
            broken(lambda spec: spec["metadata"]["parameters"].append(spec["metadata"]["parameters"][0])),
            "twice",
        ),
        (
            broken(lambda spec: spec["metadata"]["parameters"][0].update(regexes=["("])),
            "no regular expression",
        ),
        (broken(lambda spec: spec["metadata"]["parameters"][0].pop("label")), "label"),
        (broken(lambda spec: spec["metadata"]["parameters"][2].update(defaultValue="x")), "default"),
    ],
)
def test_a_spec_that_dataflow_could_not_use_is_told_what_is_wrong(content, sentence, tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(content)
    done = signin("validate", str(path))
    assert done.exit_code == 1
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        (["input_subscription=projects/p/subscriptions/s"], 0),
        (["input_subscription=s"], 1),
        (["colour=blue"], 1),
        (["create_disposition=NEVER"], 1),
        (["colour"], 2),
    ],
)
def test_parameters_are_checked_against_a_spec(parameters, code, tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(built())
    words = [word for parameter in parameters for word in ("--parameter", parameter)]
    assert signin("validate", str(path), *words).exit_code == code


def test_a_spec_that_is_not_there_is_a_sentence(storage):
    assert "No such object" in signin("validate", "gs://my-bucket/none.json").stderr
    assert "/none.json" in signin("validate", "/none.json").stderr
