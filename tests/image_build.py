"""Builds the images' stages without Docker: `python -m tests.image_build [TARGET...]`, or `.ci/image`.

Each stage gets a directory as its root, with a fresh Python environment in `usr/local`. COPY copies what
.dockerignore lets through, RUN runs in that root with the stage's variables; absolute paths are moved into
it. What comes from foreign images (Beam's boot, Google's launcher) is a placeholder. Then each target's
program is started: the template with the launcher's arguments, the service until it answers.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from tests.dockerfile import ROOT, all_instructions, is_ignored, read_ignores, read_stages, variables

RUN_SECONDS = 900
START_SECONDS = 120
# What the machine says of its package index stays; everything else of the environment goes.
_KEPT = re.compile(
    r"(PIP_(INDEX|EXTRA_INDEX|TRUSTED|CERT|CONFIG).*|SSL_CERT.*|REQUESTS_CA.*|HTTPS?_PROXY|NO_PROXY|HOME)"
)
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


class Builder:
    """Builds stages under `directory`, those that others copy from first."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stages = read_stages()
        self._ignores = read_ignores()
        self._built: set[str] = set()

    def root(self, name: str) -> Path:
        return self.directory / name

    def build(self, name: str) -> None:
        if name in self._built:
            return
        self._built.add(name)
        instructions = all_instructions(self.stages, name)
        root = self.root(name)
        _say(f"stage {name}")
        base = self.stages[name].base
        begun = 0
        if base in self._built:  # a Python environment cannot be copied: the stage goes on in the root
            root.symlink_to(self.root(base))
            begun = len(all_instructions(self.stages, base))
        else:
            subprocess.run([sys.executable, "-m", "venv", root / "usr" / "local"], check=True, timeout=120)
        place = "/"
        for number, (word, rest) in list(enumerate(instructions))[begun:]:
            _say(f"{word} {rest}")
            if word == "WORKDIR":
                place = rest
                self.inside(root, place).mkdir(parents=True, exist_ok=True)
            elif word == "COPY":
                self._copy(root, place, rest)
            elif word == "RUN":
                environment = self.environment(name, instructions[:number])
                command = re.sub(r"(?<=[\s=])/(?=[a-z])", f"{root}/", rest)
                where = self.inside(root, place)
                subprocess.run(
                    ["/bin/sh", "-euc", command], cwd=where, env=environment, check=True, timeout=RUN_SECONDS
                )
            else:
                assert word in {"ENV", "ENTRYPOINT", "CMD", "USER", "EXPOSE", "HEALTHCHECK"}, word

    def inside(self, root: Path, path: str, place: str = "/") -> Path:
        return root / str(Path(place) / path).lstrip("/")

    def environment(self, name: str, instructions: list[tuple[str, str]]) -> dict[str, str]:
        root = self.root(name)
        own = {
            key: f"{root}{value}" if value.startswith("/") else value
            for key, value in variables(instructions).items()
        }
        kept = {key: value for key, value in os.environ.items() if _KEPT.fullmatch(key.upper())}
        return kept | own | {"PATH": f"{root}/usr/local/bin:/usr/bin:/bin", "PIP_QUIET": "1"}

    def _copy(self, root: Path, place: str, rest: str) -> None:
        words = rest.split()
        flags = [word for word in words if word.startswith("--")]
        *sources, target = (word for word in words if not word.startswith("--"))
        destination = self.inside(root, target, place)
        if not flags:
            for source in sources:
                self._copy_from_context(source, destination / source if target == "./" else destination)
            return
        (stage,) = (flag.removeprefix("--from=") for flag in flags)
        (source,) = sources
        if "python" in self._bases(stage):
            self.build(stage)
            shutil.copytree(self.inside(self.root(stage), source), destination)
        else:
            destination.parent.mkdir(parents=True, exist_ok=True)
            destination.write_text(f"stands for {source} of {self.stages[stage].base}\n")

    def _copy_from_context(self, source: str, destination: Path) -> None:
        files = [path for path in (ROOT / source, *(ROOT / source).rglob("*")) if path.is_file()]
        taken = [path for path in files if not is_ignored(str(path.relative_to(ROOT)), self._ignores)]
        assert taken, f"the builder sees nothing of {source}"
        for path in taken:
            target = destination / path.relative_to(ROOT / source) if path != ROOT / source else destination
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)

    def _bases(self, name: str) -> list[str]:
        found = [name]
        while found[-1] in self.stages:
            found.append(self.stages[found[-1]].base)
        return found


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
    _say(f"{name}: the entry point takes the launcher's arguments, and a worker finds the code")


def check_service(builder: Builder) -> None:
    """Starts the service, which has no Beam, and asks it whether it lives."""
    instructions = all_instructions(builder.stages, "service")
    environment = builder.environment("service", instructions)
    binaries = builder.root("service") / "usr/local/bin"
    assert _run([str(binaries / "python"), "-c", "import apache_beam"], environment).returncode == 1
    settings = {
        "SIGNIN_HOST": "127.0.0.1",
        "SIGNIN_PORT": "0",
        "SIGNIN_PROJECT": "my-project",
        "PUBSUB_EMULATOR_HOST": "127.0.0.1:1",
        "DATAFLOW_EMULATOR_HOST": "127.0.0.1:1",
    }
    with subprocess.Popen(
        [binaries / "signin", "serve", "--announce"],
        cwd=builder.root("service") / "var/lib/signin",
        env=environment | settings,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        address = json.loads(process.stdout.readline())["ready"]
        with urllib.request.urlopen(f"{address}/healthz", timeout=10) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(START_SECONDS) == 0
    _say("service: it answers without Beam, and ends on SIGTERM")


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


def _say(text: str) -> None:
    sys.stdout.write(f"-- {text}\n")
    sys.stdout.flush()


def main(targets: list[str]) -> None:
    """Builds and checks the targets, or all of them."""
    with tempfile.TemporaryDirectory(prefix="signin-image-") as directory:
        builder = Builder(Path(directory))
        for target in targets or ["service", "template", "template-backfill"]:
            builder.build(target)
            if target == "service":
                check_service(builder)
            else:
                check_template(builder, target)


if __name__ == "__main__":
    main(sys.argv[1:])
