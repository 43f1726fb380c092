"""The Dockerfile, as far as it can be judged without a builder; `.ci/image` goes through its steps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.dockerfile import (
    ROOT,
    all_instructions,
    exec_form,
    is_ignored,
    read_ignores,
    read_stages,
    variables,
)

STAGES = read_stages()
TARGETS = ("template", "template-backfill", "service")
SITE_PACKAGES = "/usr/local/lib/python3.11/site-packages/"


def instructions(target):
    return all_instructions(STAGES, target)


def test_every_image_from_elsewhere_is_named_with_a_version():
    for stage in STAGES.values():
        if stage.base not in STAGES:
            name, _, tag = stage.base.partition(":")
            assert tag not in ("", "latest"), name


def test_the_boot_program_is_that_of_the_beam_that_is_installed():
    (beam,) = re.findall(
        r"^apache-beam(?:\[gcp\])?==(\S+)", (ROOT / "requirements-pipeline.txt").read_text(), re.MULTILINE
    )
    assert STAGES["beam"].base == f"apache/beam_python3.11_sdk:{beam}"


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_installs_nothing_that_is_not_pinned_by_its_hash(target):
    installs = [rest for word, rest in instructions(target) if word == "RUN" and "pip install" in rest]
    assert installs
    for command in installs:
        assert (
            "--require-hashes -r requirements" in command or "--no-deps --no-index /wheels/*.whl" in command
        )


@pytest.mark.parametrize("target", TARGETS)
def test_what_an_image_has_fits_together(target):
    assert any("pip check" in rest for word, rest in instructions(target) if word == "RUN")


@pytest.mark.parametrize(
    ("target", "file"), [("template", "user_signin.py"), ("template-backfill", "backfill_signin.py")]
)
def test_a_template_names_its_program_and_downloads_nothing_at_launch(target, file):
    given = variables(instructions(target))
    assert given["FLEX_TEMPLATE_PYTHON_PY_FILE"] == f"{SITE_PACKAGES}pipeline/{file}"
    assert (ROOT / "pipeline" / file).is_file()
    assert [name for name in given if name.startswith("FLEX_TEMPLATE")] == ["FLEX_TEMPLATE_PYTHON_PY_FILE"]
    assert given["RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT"] == "1"


@pytest.mark.parametrize("target", ["template", "template-backfill"])
def test_a_template_is_launcher_and_worker_in_one(target):
    copied = [rest.split()[-1] for word, rest in instructions(target) if word == "COPY"]
    assert "/opt/apache/beam" in copied
    assert "/opt/google/dataflow/python_template_launcher" in copied
    assert exec_form(instructions(target), "ENTRYPOINT") == ["/opt/apache/beam/boot"]


def test_the_service_runs_as_nobody_in_particular_and_without_beam():
    words = dict(instructions("service"))
    user = words["USER"]
    assert user.partition(":")[0].isdecimal()
    assert int(user.partition(":")[0]) >= 10_000
    assert exec_form(instructions("service"), "CMD") == ["signin", "serve"]
    assert not any("beam" in rest or "requirements-pipeline" in rest for _, rest in instructions("service"))


def test_the_builder_sees_what_is_copied_and_nothing_else():
    patterns = read_ignores()
    for stage in STAGES.values():
        for word, rest in stage.instructions:
            if word == "COPY" and "--from=" not in rest:
                for source in rest.split()[:-1]:
                    assert (ROOT / source).exists(), source
                    assert not is_ignored(source, patterns), source
    for secret in (
        ".env",
        ".git/config",
        ".signin/signin.db",
        ".venv/bin/python",
        "tests/conftest.py",
        "key.json",
    ):
        assert is_ignored(secret, patterns), secret
    assert is_ignored("service/__pycache__/app.cpython-311.pyc", patterns)
    assert not is_ignored("pipeline/template.json", patterns)


def test_every_package_of_the_wheel_reaches_its_builder():
    text = (ROOT / "pyproject.toml").read_text()
    (packages,) = re.findall(r"hatch.build.targets.wheel\]\npackages = (\[.*\])", text)
    copied = [rest.split()[-1] for word, rest in STAGES["wheel"].instructions if word == "COPY"]
    assert {*re.findall(r'"(\w+)"', packages), "alembic"} <= set(copied)
    for name in re.findall(r'^(?:readme|license-files) = .*?"([^"]+)"', text, re.MULTILINE):
        assert any(name in rest for word, rest in STAGES["wheel"].instructions if word == "COPY")
        assert Path(ROOT / name).is_file()
