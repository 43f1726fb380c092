"""The Flex Template metadata says the same as the options."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest
from google.cloud.dataflow_v1beta3.types import ParameterType, TemplateMetadata

from pipeline.backfill.options import FILES_PATTERN, BackfillOptions
from pipeline.options import WRITE_METHODS_WITH_JAVA, SigninOptions
from service.local.templates import Template

PACKAGE = Path(__file__).parents[1] / "pipeline"
FILES = {"user-signin": PACKAGE / "template.json", "backfill-signin": PACKAGE / "backfill_signin.json"}
# A backfill takes what says where its rows go, and nothing that says how Pub/Sub is read.
ONLY_STREAMING = {"input_subscription", "input_topic", "id_label", "timestamp_attribute"}


def metadata(name="user-signin"):
    return json.loads(FILES[name].read_text())


def parameters(name="user-signin"):
    return {parameter["name"]: parameter for parameter in metadata(name)["parameters"]}


def options_of(*classes):
    parser = argparse.ArgumentParser(add_help=False)
    for options in classes:
        options._add_argparse_args(parser)
    return {action.dest: action for action in parser._actions}


OPTIONS = {
    "user-signin": options_of(SigninOptions),
    "backfill-signin": {
        name: action
        for name, action in options_of(BackfillOptions, SigninOptions).items()
        if name not in ONLY_STREAMING
    },
}
PARAMETERS = [(pipeline, name) for pipeline, options in OPTIONS.items() for name in options]


@pytest.mark.parametrize("pipeline", OPTIONS)
def test_the_template_has_exactly_the_options_as_parameters(pipeline):
    assert list(parameters(pipeline)) == list(OPTIONS[pipeline])


@pytest.mark.parametrize(("pipeline", "name"), PARAMETERS)
def test_a_parameter_says_what_its_option_says(pipeline, name):
    parameter, option = parameters(pipeline)[name], OPTIONS[pipeline][name]
    assert parameter["helpText"] == option.help
    assert parameter.get("defaultValue", "") == option.default
    assert parameter["isOptional"] is (name != "input_files")
    choices = [choice for choice in option.choices or [] if choice not in WRITE_METHODS_WITH_JAVA]
    assert [choice["value"] for choice in parameter.get("enumOptions", [])] == choices


@pytest.mark.parametrize("pipeline", FILES)
def test_a_way_to_write_that_needs_java_is_an_option_by_hand_and_no_template_takes_it(pipeline):
    choices = OPTIONS[pipeline]["write_method"].choices
    assert set(choices) > WRITE_METHODS_WITH_JAVA
    template = Template("", FILES[pipeline])
    given = {"input_files": "gs://bucket/x"} if pipeline == "backfill-signin" else {}
    refused = {way for way in choices if template.violations(given | {"write_method": way})}
    assert refused == WRITE_METHODS_WITH_JAVA


@pytest.mark.parametrize(("pipeline", "name"), PARAMETERS)
def test_an_option_is_text_because_a_template_parameter_cannot_be_a_flag(pipeline, name):
    option = OPTIONS[pipeline][name]
    assert option.nargs is None
    assert isinstance(option.default, str)


def test_the_two_templates_say_the_same_where_they_have_the_same():
    streaming, batch = parameters("user-signin"), parameters("backfill-signin")
    assert set(streaming) - set(batch) == ONLY_STREAMING
    assert all(batch[name] == streaming[name] for name in set(batch) & set(streaming))


@pytest.mark.parametrize("pipeline", FILES)
def test_a_default_value_passes_its_own_rules(pipeline):
    for parameter in parameters(pipeline).values():
        for regex in parameter.get("regexes", []):
            assert "defaultValue" not in parameter or re.fullmatch(regex, parameter["defaultValue"])


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [
        ("input_subscription", "projects/my-project/subscriptions/s", True),
        ("input_subscription", "s", False),
        ("input_topic", "projects/my-project/topics/t", True),
        ("input_topic", "projects/my-project/subscriptions/s", False),
        ("output_table", "YourProject:YourDataset.YourTable", False),
        ("output_table", "your-project:YourDataset.YourTable", True),
        ("output_table", "your-project.YourDataset.YourTable", True),
        ("output_table", "example.com:your-project:YourDataset.YourTable", True),
        ("output_table", "YourDataset.YourTable", True),
        ("output_table", "YourTable", False),
        ("pipeline_version", "", False),
    ],
)
def test_the_rules_of_a_parameter_tell_good_values_from_bad(name, value, valid):
    assert all(bool(re.fullmatch(regex, value)) is valid for regex in parameters()[name]["regexes"])


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        ("gs://my-bucket/2024/*.json", True),
        ("/var/log/signins-*.gz", True),
        ("gs://my-bucket", False),
        ("gs://My_Bucket!/x", False),
        ("logs/x", False),
        ("", False),
    ],
)
def test_the_rule_of_the_input_files_tells_good_patterns_from_bad(value, valid):
    (regex,) = parameters("backfill-signin")["input_files"]["regexes"]
    assert regex == FILES_PATTERN
    assert bool(re.fullmatch(regex, value)) is valid


@pytest.mark.parametrize("pipeline", FILES)
def test_dataflow_understands_the_metadata(pipeline):
    read = TemplateMetadata.from_json(json.dumps(metadata(pipeline)), ignore_unknown_fields=False)
    assert read.streaming is (pipeline == "user-signin")


def test_the_kinds_of_parameters_are_those_that_the_console_knows():
    read = TemplateMetadata.from_json(json.dumps(metadata()), ignore_unknown_fields=False)
    kinds = {parameter.name: parameter.param_type for parameter in read.parameters}
    assert kinds["input_subscription"] is ParameterType.PUBSUB_SUBSCRIPTION
    assert kinds["output_table"] is ParameterType.BIGQUERY_TABLE
