"""Builds the images without Docker and starts each as its platform does: `.ci/image [TARGET...]`.

A template gets the launcher's arguments. What serves runs as process 1 of a container (tests/container.py):
as another user, with a root that is read-only but for the data directory.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import container
from tests.compose_run import check_compose
from tests.dockerfile import all_instructions, exec_form, health_command
from tests.image_build import Builder, say

START_SECONDS = 120
END_SECONDS = 60
NOBODY = "127.0.0.1:1"
# Over the base image; it is 197 MB, and a dependency that adds a sixth to that is to be looked at.
MOST_SERVICE_BYTES = 230_000_000
# Behind the launcher's own come the parameters of the launch.
LAUNCHER_ARGUMENTS = [
    "--runner=DataflowRunner",
    "--project=my-project",
    "--region=us-central1",
    "--job_name=signin-user-tobigquery-0001",
    "--temp_location=gs://my-bucket/temp",
    "--staging_location=gs://my-bucket/staging",
    "--template_location=gs://my-bucket/staging/template_launches/job_object",
    "--sdk_container_image=us-docker.pkg.dev/my-project/signin/pipeline@sha256:" + "0" * 64,
    "--max_num_workers=5",
    "--service_account_email=worker@my-project.iam.gserviceaccount.com",
    "--labels=signin-job=1",
    "--enable_streaming_engine",
    "--an_option_of_a_newer_launcher=1",
]
PARAMETERS = {
    "template": ["--input_subscription=projects/my-project/subscriptions/s", "--output_table=a.b"],
    "template-backfill": ["--input_files=gs://my-bucket/signins-*.gz", "--output_table=a.b"],
}


def check_template(builder: Builder, name: str) -> None:
    """Starts the entry point as the launcher does, from elsewhere, up to where it would ask Google."""
    environment = builder.environment(name, all_instructions(builder.stages, name))
    python = builder.root(name) / "usr/local/bin/python"
    command = [
        str(python),
        environment["FLEX_TEMPLATE_PYTHON_PY_FILE"],
        *PARAMETERS[name],
        *LAUNCHER_ARGUMENTS,
    ]
    done = _run([*command, "--dry_run=true"], environment)
    assert done.returncode == 0, done.stderr
    done = _run([*command, "--output_table=nonsense", "--dry_run=true"], environment)
    assert done.returncode == 2, done.stderr
    assert "nonsense" in done.stderr
    # A real launch stops at the first thing that needs Google, and says so.
    away = {"CLOUDSDK_CONFIG": "/nonexistent", "NO_GCE_CHECK": "true"}
    done = _run(command, environment | away)
    assert done.returncode == 2, done.stderr
    assert "gcloud auth application-default login" in done.stderr
    code = "import pipeline.pubsub_source, pipeline.graph, transforms.bigquery_write"
    done = _run([str(python), "-c", code], environment)
    assert done.returncode == 0, done.stderr
    say(f"{name}: the entry point takes the launcher's arguments, and a worker finds the code")


def bounded_size(directory: Path) -> int:
    """The bytes of all files below the directory. Raises AssertionError where they are too many."""
    sizes = {path: path.stat().st_size for path in directory.rglob("*") if path.is_file()}
    total = sum(sizes.values())
    largest = ", ".join(f"{path.name} {size:,}" for path, size in Counter(sizes).most_common(5))
    assert total <= MOST_SERVICE_BYTES, f"{total:,} bytes are more than {MOST_SERVICE_BYTES:,}: {largest}"
    return total


def check_service(builder: Builder) -> None:
    """Starts the service alone: without Beam, without Pub/Sub, with nothing but its data directory."""
    environment = builder.environment("service", all_instructions(builder.stages, "service"))
    python = str(builder.root("service") / "opt/signin/bin/python")
    assert _run([python, "-c", "import apache_beam"], environment).returncode == 1
    assert _run([python, "-c", "import pip"], environment).returncode == 1
    size = bounded_size(builder.root("service") / "opt/signin")
    say(f"service: {size / 1e6:.0f} MB over the base image, of at most {MOST_SERVICE_BYTES / 1e6:.0f}")
    away = {"PUBSUB_EMULATOR_HOST": NOBODY, "DATAFLOW_EMULATOR_HOST": NOBODY}
    with _serving(builder, away) as url:
        assert _answer(f"{url}/readyz")["status"] == "degraded"
        taken = _answer(f"{url}/events/signin", {"userid": "93234234", "date": "2017-10-17T20:57:17.338320"})
        assert taken["status"] == "spooled", taken
    say("service: alone it keeps a sign-in, and ends on SIGTERM with code 0")


def check_local(builder: Builder) -> None:
    """Starts the local stack, the service beside it, and sends a sign-in all the way to its row."""
    builder.build("service")
    with _container(
        builder, "local", {}, "--pubsub-port=0", "--dataflow-port=0", "--bigquery-port=0"
    ) as process:
        environment = _stack(builder.root("local") / "var/lib/signin/stack.json", process)
        with _serving(builder, environment) as url:
            assert _answer(f"{url}/readyz")["status"] == "ready"
            job = _answer(f"{url}/jobs", {"name": "image"})
            taken = _answer(f"{url}/events/signin", {"userid": "image", "date": "2017-10-17T20:57:17.338320"})
            assert taken["status"] == "published", taken
            _wait_for_row(environment, process)
            _answer(f"{url}/jobs/{job['id']}/cancel", {})
        _end(process)
    say("local: a job of its Dataflow wrote the sign-in of a service beside it, all of it read-only")


def _stack(record: Path, process: subprocess.Popen[str]) -> dict[str, str]:
    """The addresses of a stack that has started."""
    deadline = time.monotonic() + START_SECONDS
    while not record.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the stack does not start"
        time.sleep(0.1)
    found: dict[str, str] = json.loads(record.read_text())["environment"]
    return found


def _wait_for_row(environment: dict[str, str], process: subprocess.Popen[str]) -> None:
    path = f"/bigquery/v2/projects/{environment['SIGNIN_PROJECT']}/queries"
    query = {"query": "SELECT userid FROM user_signin.signins WHERE userid = 'image'", "useLegacySql": False}
    deadline = time.monotonic() + START_SECONDS
    while int(_answer(environment["BIGQUERY_EMULATOR_HOST"] + path, query).get("totalRows", 0)) < 1:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the sign-in became no row"
        time.sleep(0.5)


@contextmanager
def _serving(builder: Builder, settings: dict[str, str]) -> Iterator[str]:
    """The URL of the image's service, whose health check is good; it ends with code 0 when it is told to."""
    given = {"SIGNIN_HOST": "127.0.0.1", "SIGNIN_PORT": "0", **settings}
    given.setdefault("SIGNIN_PROJECT", "my-project")
    with _container(builder, "service", given, "--announce") as process:
        assert process.stdout
        line = process.stdout.readline()
        assert line, process.communicate()
        url = json.loads(line)["ready"]
        instructions = all_instructions(builder.stages, "service")
        checked = builder.environment("service", instructions) | {"SIGNIN_PORT": url.rpartition(":")[2]}
        done = _run(health_command(instructions), checked)
        assert done.returncode == 0, done.stderr
        yield url
        _end(process)


@contextmanager
def _container(
    builder: Builder, target: str, settings: dict[str, str], *arguments: str
) -> Iterator[subprocess.Popen[str]]:
    """The target's program as its image starts it."""
    instructions = all_instructions(builder.stages, target)
    root = builder.root(target)
    command = [*exec_form(instructions, "ENTRYPOINT"), *exec_form(instructions, "CMD"), *arguments]
    environment = builder.environment(target, instructions) | settings
    seen = [root / "opt/signin", Path(sys.base_prefix)]
    with container.started(command, root / "var/lib/signin", seen, environment) as process:
        yield process


def _end(process: subprocess.Popen[str]) -> None:
    container.send(process, signal.SIGTERM)
    _, errors = process.communicate(timeout=END_SECONDS)
    assert process.returncode == 0, errors


def _answer(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def _run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as elsewhere:
        return subprocess.run(
            command,
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )


SERVING: dict[str, Callable[[Builder], None]] = {
    "service": check_service,
    "local": check_local,
    "compose": check_compose,
}
TEMPLATES = ("template", "template-backfill")


def main(targets: list[str]) -> None:
    """Builds and checks the targets, or all of them."""
    with tempfile.TemporaryDirectory(prefix="signin-image-") as directory:
        Path(directory).chmod(0o755)  # another user looks at what was built
        builder = Builder(Path(directory))
        unchecked = []
        for target in targets or (*SERVING, *TEMPLATES):
            if target in builder.stages:
                builder.build(target)
            if target in TEMPLATES:
                check_template(builder, target)
            elif container.why_not():
                unchecked.append(target)
            else:
                SERVING[target](builder)
    for target in unchecked:
        say(f"NOT STARTED: {target} was not tried in a container: {container.why_not()}")


if __name__ == "__main__":
    main(sys.argv[1:])
