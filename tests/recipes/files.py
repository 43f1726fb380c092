"""What the recipes say: containers of every platform in one form, and the names of Terraform's files."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = ROOT / "compose.yaml"
KUBERNETES = DEPLOY / "kubernetes"
CLOUD_RUN = DEPLOY / "cloud-run"
TERRAFORM = DEPLOY / "terraform"
DIGEST = "sha256:" + "0" * 64
# What a person gives for `envsubst`.
GIVEN = {
    "PROJECT": "my-project",
    "REGION": "us-central1",
    "NAME": "signin",
    "SERVICE_IMAGE": f"us-docker.pkg.dev/my-project/signin/service@{DIGEST}",
    "TEMPLATE_PATH": "gs://my-project-signin-templates/templates/user-signin.json",
    "BACKFILL_TEMPLATE_PATH": "gs://my-project-signin-templates/templates/backfill-signin.json",
    "OIDC_AUDIENCE": "https://signin.example.com",
    "OIDC_SCOPES": '{"email=backend@my-project.iam.gserviceaccount.com": ["events:write"]}',
}


@dataclass(frozen=True)
class Container:
    """A container of a recipe; `settings` are its variables, `where` says in which file it stands."""

    where: str
    image: str
    arguments: list[str]
    settings: dict[str, str]
    said: dict[str, Any]
    pod: dict[str, Any]


def documents(directory: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(directory.glob("*.yaml")):
        text = path.read_text()
        for each in yaml.safe_load_all(filled(text) if directory == CLOUD_RUN else text):
            yield path, each


def filled(text: str) -> str:
    """The text as `envsubst` leaves it; raises KeyError for a variable that nobody gives."""
    return string.Template(re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).substitute(GIVEN)


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return found


def kubernetes_settings() -> dict[str, str]:
    lines = (KUBERNETES / "settings.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line)


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """The pod specs of Kubernetes and Cloud Run, each with the name of its file."""
    for directory in (KUBERNETES, CLOUD_RUN):
        for path, document in documents(directory):
            spec = document.get("spec") or {}
            while "template" in spec:
                spec = spec["template"]["spec"]
            if "containers" in spec:
                yield f"{directory.name}/{path.name}", spec


def containers() -> Iterator[Container]:
    """Those of Kubernetes and Cloud Run."""
    for where, pod in pods():
        for each in (*pod.get("initContainers", ()), *pod["containers"]):
            settings = {entry["name"]: entry["value"] for entry in each.get("env", ())}
            if "envFrom" in each:
                settings |= kubernetes_settings()
            yield Container(
                f"{where}: {each['name']}", each["image"], each.get("args", []), settings, each, pod
            )


def terraform() -> dict[str, str]:
    """Terraform's files without their comments, by name."""
    return {
        path.name: re.sub(r"(^|\s)#.*", "", path.read_text(), flags=re.MULTILINE)
        for path in sorted(TERRAFORM.glob("*.tf"))
    }
