"""The Flex Template metadata says the same as the options."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest
from google.cloud.dataflow_v1beta3.types import ParameterType, TemplateMetadata

from pipeline.options import SigninOptions

METADATA = Path(__file__).parents[1] / "pipeline" / "template.json"


def metadata():
    return json.loads(METADATA.read_text())


def parameters():
    return {parameter["name"]: parameter for parameter in metadata()["parameters"]}


def options():
    parser = argparse.ArgumentParser(add_help=False)
    SigninOptions._add_argparse_args(parser)
    return {action.dest: action for action in parser._actions}


def test_the_template_has_exactly_the_options_as_parameters():
    assert list(parameters()) == list(options())


@pytest.mark.parametrize("name", list(options()))
def test_a_parameter_says_what_its_option_says(name):
    parameter, option = parameters()[name], options()[name]
    assert parameter["helpText"] == option.help
    assert parameter.get("defaultValue", "") == option.default
    assert parameter["isOptional"] is not option.required
    assert [choice["value"] for choice in parameter.get("enumOptions", [])] == list(option.choices or [])


@pytest.mark.parametrize("name", list(options()))
def test_an_option_is_text_because_a_template_parameter_cannot_be_a_flag(name):
    option = options()[name]
    assert option.nargs is None
    assert isinstance(option.default, str)


def test_a_default_value_passes_its_own_rules():
    for parameter in parameters().values():
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


def test_dataflow_understands_the_metadata():
    read = TemplateMetadata.from_json(json.dumps(metadata()), ignore_unknown_fields=False)
    assert read.streaming
    kinds = {parameter.name: parameter.param_type for parameter in read.parameters}
    assert kinds["input_subscription"] is ParameterType.PUBSUB_SUBSCRIPTION
    assert kinds["output_table"] is ParameterType.BIGQUERY_TABLE
