"""The templates of the local Dataflow: paths, modules and parameters."""

from __future__ import annotations

import json

import pytest

from service.local.templates import Template, TemplateNotFoundError, Templates

PARAMETERS = [
    {"name": "source", "label": "Source", "helpText": "", "regexes": ["^projects/[^/]+$"]},
    {
        "name": "mode",
        "label": "Mode",
        "helpText": "",
        "isOptional": True,
        "enumOptions": [{"value": "fast", "label": "Fast"}, {"value": "safe"}],
    },
]


@pytest.fixture(params=["bare", "container spec"])
def template(request, tmp_path):
    """The same metadata as the image builder writes it and as Dataflow keeps it in a bucket."""
    metadata = {"name": "sample", "description": "", "parameters": PARAMETERS}
    content = metadata if request.param == "bare" else {"image": "sample", "metadata": metadata}
    path = tmp_path / "template.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return Template("sample", path)


def test_a_local_path_means_a_module_of_the_pipeline():
    template = Templates().find("gs://signin-local/templates/user-signin.json")
    assert template.module == "pipeline.user_signin"


@pytest.mark.parametrize(
    "path",
    [
        "gs://signin-local/templates/no-such-job.json",
        "gs://signin-local/templates/os.path.json",
        "gs://signin-local/templates/../user-signin.json",
        "gs://signin-local/user-signin.json",
        "gs://another/templates/user-signin.json",
        "",
    ],
)
def test_other_paths_are_not_found(path):
    with pytest.raises(TemplateNotFoundError):
        Templates().find(path)


def test_a_given_template_comes_first(template):
    path = "gs://signin-local/templates/user-signin.json"
    assert Templates({path: template}).find(path) is template


@pytest.mark.parametrize(
    ("parameters", "wrong"),
    [
        ({"source": "projects/p"}, []),
        ({"source": "projects/p", "mode": "fast"}, []),
        ({}, ["source"]),
        ({"source": "elsewhere"}, ["source"]),
        ({"source": "projects/p/more"}, ["source"]),
        ({"source": "projects/p", "mode": "slow"}, ["mode"]),
        ({"source": "projects/p", "colour": "blue"}, ["colour"]),
        ({"source": "projects/\0"}, ["source"]),
    ],
)
def test_parameters_that_the_metadata_refuses_are_named(template, parameters, wrong):
    assert [violation.parameter for violation in template.violations(parameters)] == wrong


def test_without_metadata_every_parameter_is_taken():
    assert Template("sample").violations({"anything": "goes"}) == []
    assert not Template("sample").is_batch()


def test_the_templates_of_the_pipeline_say_which_jobs_are_batch_jobs():
    kinds = {
        name: Templates().find(f"gs://signin-local/templates/{name}.json").is_batch()
        for name in ("user-signin", "backfill-signin")
    }
    assert kinds == {"user-signin": False, "backfill-signin": True}


@pytest.mark.parametrize(
    ("content", "is_batch"),
    [
        ({"name": "sample"}, False),
        ({"name": "sample", "streaming": True}, False),
        ({"name": "sample", "streaming": False}, True),
        ({"image": "sample", "metadata": {"streaming": True}}, False),
        ({"image": "sample", "metadata": {}}, True),  # as `signin template build` writes what is false
    ],
)
def test_a_template_is_one_of_batch_jobs_where_its_metadata_says_so(tmp_path, content, is_batch):
    path = tmp_path / "template.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert Template("sample", path).is_batch() is is_batch
