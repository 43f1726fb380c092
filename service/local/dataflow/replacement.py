"""The update of a running job: who replaces whom, and whether the new graph can take over from the old."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from service.local.dataflow.job import LocalJob


def to_be_replaced(job: LocalJob, jobs: Mapping[str, LocalJob]) -> LocalJob | None:
    """The job that `job` was launched to replace, as long as it has not done so."""
    old = jobs.get(job.proto.replace_job_id)
    return old if old and old.proto.replaced_by_job_id != job.id else None


def pending_replacement(job: LocalJob, jobs: Iterable[LocalJob]) -> LocalJob | None:
    """The active job that is to replace `job` and has not done so."""
    for other in jobs:
        if other.is_active and other.proto.replace_job_id == job.id:
            return other if job.proto.replaced_by_job_id != other.id else None
    return None


def incompatibility(old: LocalJob, new: LocalJob) -> str:
    """Why the new graph cannot take over from the old one, in Dataflow's words; empty where it can.

    Each step of the old graph must be in the new one under its name or the one that it is mapped to; a
    step that is mapped to nothing may be gone. A graph that is not known is not compared.
    """
    before, after = set(old.transforms), set(new.transforms)
    if not before or not after:
        return ""
    mapping = dict(new.proto.transform_name_mapping)
    unknown = sorted(name for name in mapping if not any(_is_within(step, name) for step in before))
    missing = sorted(step for step in before if (mapped := _mapped(step, mapping)) and mapped not in after)
    causes = []
    if missing:
        causes.append(
            f"The new job is missing steps {', '.join(missing)}. If these steps have been renamed or "
            "deleted, please specify them with the update command."
        )
    if unknown:
        causes.append(
            f"The transform name mapping names steps that the old job does not have: {', '.join(unknown)}."
        )
    if not causes:
        return ""
    head = f"The new job is not compatible with {old.id}. The original job has not been aborted."
    return ", ".join([head, *causes])


def _mapped(step: str, mapping: Mapping[str, str]) -> str:
    """The step's new name: its own mapping or that of the nearest composite around it; empty for none."""
    parts = step.split("/")
    for length in range(len(parts), 0, -1):
        name = "/".join(parts[:length])
        if name in mapping:
            return "/".join([mapping[name], *parts[length:]]) if mapping[name] else ""
    return step


def _is_within(step: str, composite: str) -> bool:
    return step == composite or step.startswith(composite + "/")
