"""Checks the manifests against the platforms' own schemas, offline: `python -m tests.recipes.schemas`.

Kubernetes' come with kubernetes-validate, Cloud Run's is the discovery document in google-api-python-client,
the Prometheus Operator's are models in a package of cloudcoil.
"""

from __future__ import annotations

import importlib.resources
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from tests.recipes.files import CLOUD_RUN, KUBERNETES, documents

KUBERNETES_VERSIONS = ("1.34", "1.37")
_RUN_VERSIONS = {"serving.knative.dev/v1": "Service", "run.googleapis.com/v1": "Job"}
_JSON_TYPES = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict, "number": float}


def of_kubernetes() -> Iterator[str]:
    """Unknown fields are findings too."""
    import kubernetes_validate

    for path, document in documents(KUBERNETES):
        kind = document["kind"]
        if kind in ("Kustomization", "PodMonitor"):
            continue
        for version in KUBERNETES_VERSIONS:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{path.name}: {kind} of {version}: {error.message} at {list(error.path)}"


def of_the_operator() -> Iterator[str]:
    """Whether the PodMonitor is what was written once the operator's model has read it."""
    from cloudcoil.models.prometheus_operator.v1 import PodMonitor

    for path, document in documents(KUBERNETES):
        if document["kind"] == "PodMonitor":
            read = PodMonitor.model_validate(document).model_dump(
                mode="json", by_alias=True, exclude_unset=True
            )
            yield from (f"{path.name}: {each}" for each in _lost(document, read, "PodMonitor"))


def of_cloud_run() -> Iterator[str]:
    """Fields by the API's description, and each annotation where the API says that it belongs."""
    package = importlib.resources.files("googleapiclient")
    text = (package / "discovery_cache/documents/run.v1.json").read_text()
    schemas: dict[str, Any] = json.loads(text)["schemas"]
    told = schemas["ObjectMeta"]["properties"]["annotations"]["description"]
    places = dict(re.findall(r"\* `([^`]+)`: ([A-Za-z, ]+)", told))
    for path, document in documents(CLOUD_RUN):
        kind = _RUN_VERSIONS[document["apiVersion"]]
        assert document["kind"] == kind
        yield from (f"{path.name}: {each}" for each in _misfits(schemas, document, {"$ref": kind}, kind))
        inner = "Revision" if kind == "Service" else "Execution"
        for level, found in ((kind, document), (inner, document["spec"]["template"])):
            for name in found.get("metadata", {}).get("annotations", {}):
                if level not in places.get(name, ""):
                    yield f"{path.name}: {name} is no annotation of a {level}"


def _misfits(schemas: dict[str, Any], value: Any, schema: dict[str, Any], where: str) -> Iterator[str]:
    if name := schema.get("$ref"):
        schema = schemas[name]
    expected = _JSON_TYPES[schema["type"]]
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        yield f"{where} is no {schema['type']}"
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _misfits(schemas, each, schema["items"], f"{where}[{index}]")
    elif isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties")
        for key, each in value.items():
            if part := properties.get(key, others):
                yield from _misfits(schemas, each, part, f"{where}.{key}")
            else:
                yield f"{where} has no {key}"


def _lost(given: Any, read: Any, where: str) -> Iterator[str]:
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            yield from _lost(value, read.get(key), f"{where}.{key}")
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for index, (one, other) in enumerate(zip(given, read, strict=True)):
            yield from _lost(one, other, f"{where}[{index}]")
    elif given != read:
        yield f"{where} is not known"


def main() -> None:
    found = [*of_kubernetes(), *of_the_operator(), *of_cloud_run()]
    for each in found:
        sys.stderr.write(f"{each}\n")
    if found:
        raise SystemExit(f"{len(found)} findings in the manifests")
    sys.stdout.write("the manifests are what Kubernetes, the operator and Cloud Run know\n")


if __name__ == "__main__":
    main()
