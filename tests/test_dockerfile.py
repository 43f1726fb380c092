"""The Dockerfile, as far as it can be judged without a builder; `.ci/image` goes through its steps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import image_checks
from tests.dockerfile import (
    ROOT,
    all_instructions,
    every_step,
    exec_form,
    health_command,
    is_ignored,
    read_ignores,
    read_stages,
    variables,
)

STAGES = read_stages()
TARGETS = ("template", "template-backfill", "service", "local")
SERVING = ("service", "local")
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
    commands = [rest for word, rest in every_step(STAGES, target) if word == "RUN"]
    installs = [each for command in commands for each in command.split(" && ") if " install " in each]
    assert (
        len([each for each in installs if "pip" in each]) >= 3
    )  # the builder's, the requirements, the wheel
    for each in installs:
        assert (
            "--no-deps --require-hashes -r requirements" in each
            or "--no-deps --no-index /wheels/*.whl" in each
            or each.startswith("install -d ")  # coreutils'
        ), each


@pytest.mark.parametrize("target", TARGETS)
def test_what_an_image_has_fits_together(target):
    checks = [rest for word, rest in every_step(STAGES, target) if word == "RUN" and " check" in rest]
    assert any(rest.partition(" check")[0].endswith(("pip", "/opt/signin/bin/python")) for rest in checks)


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


@pytest.mark.parametrize("target", SERVING)
def test_what_serves_runs_as_nobody_in_particular_behind_an_init(target):
    words = dict(instructions(target))
    user, _, group = words["USER"].partition(":")
    assert int(user) >= 10_000
    assert int(group) >= 10_000
    assert exec_form(instructions(target), "ENTRYPOINT")[0] == "dumb-init"
    assert "\ndumb-init==" in (ROOT / "requirements.txt").read_text()
    assert "\ndumb-init==" in (ROOT / "requirements-local.txt").read_text()


@pytest.mark.parametrize("target", SERVING)
def test_what_serves_has_its_bytecode_and_writes_to_its_data_directory_alone(target):
    given = variables(instructions(target))
    directory = given["SIGNIN_DATA_DIR"]
    assert given["TMPDIR"] == directory
    assert given["PYTHONDONTWRITEBYTECODE"] == "1"
    assert dict(instructions(target))["WORKDIR"] == directory
    (compiled,) = [rest for word, rest in every_step(STAGES, target) if "compileall" in rest]
    assert "/opt/signin/lib" in compiled
    made = [rest for word, rest in instructions(target) if word == "RUN"]
    assert made == [f"install -d -m 1777 {directory}"]  # nothing else is done in the image that runs


def test_the_service_is_there_without_beam_and_tells_how_it_is():
    steps = every_step(STAGES, "service")
    assert exec_form(steps, "CMD") == ["signin", "serve"]
    assert not any("beam" in rest or "requirements-pipeline" in rest for _, rest in steps)
    assert "/healthz" in health_command(steps)[-1]


def test_the_local_stack_is_there_with_all_that_its_jobs_need():
    steps = every_step(STAGES, "local")
    assert exec_form(steps, "CMD") == ["signin", "local"]
    assert any("-r requirements-local.txt" in rest for _, rest in steps)


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


def test_an_image_that_has_grown_past_its_bound_is_noticed(tmp_path):
    path = tmp_path / "lib" / "large"
    path.parent.mkdir()
    for over in (0, 1):
        with path.open("wb") as file:
            file.truncate(image_checks.MOST_SERVICE_BYTES + over)  # takes no room
        if over:
            with pytest.raises(AssertionError, match=r"230,000,001 bytes are more than .*: large"):
                image_checks.bounded_size(tmp_path)
        else:
            assert image_checks.bounded_size(tmp_path) == image_checks.MOST_SERVICE_BYTES
