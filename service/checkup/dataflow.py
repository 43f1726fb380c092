"""Dataflow's list of jobs of the region, the templates, and the buckets that jobs write to."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

import msgspec

from service.checkup.findings import NotAsked, Trouble
from service.checkup.place import Place
from service.checkup.refusals import explained
from service.config import Pipeline
from service.pipelines import BACKFILL
from service.template_specs import NoMetadataError, TemplateSpecs

API = "dataflow.googleapis.com"
STORAGE_API = "storage.googleapis.com"
CALL_SECONDS = 8.0


async def region(place: Place) -> str:
    """Lists the jobs of the region, at most one."""
    settings = place.settings
    endpoint = settings.dataflow_emulator_host or settings.dataflow_endpoint
    regions = f"Set SIGNIN_REGION to one of: gcloud compute regions list --project={settings.project}"
    request = {"project_id": settings.project, "location": settings.region, "page_size": 1}
    try:
        jobs = await place.clients.dataflow_jobs()
        page = await jobs.list_jobs(request=request, timeout=CALL_SECONDS, retry=None)
    except Exception as error:
        known = {
            "PERMISSION_DENIED": Trouble(
                "This service may not list jobs: it lacks dataflow.jobs.list.",
                await place.grant("roles/dataflow.developer"),
            ),
            "NOT_FOUND": Trouble(f"There is no region {settings.region}, or no such project.", regions),
            "INVALID_ARGUMENT": Trouble(f"Dataflow knows no region {settings.region}.", regions),
        }
        raise explained(error, settings.project, endpoint, known, api=API) from error
    if page.failed_location:
        raise Trouble("Dataflow could not list the region now.", "Try again.", is_fatal=False)
    return "Its jobs can be listed."


async def template(place: Place, pipeline_name: str, pipeline: Pipeline) -> str:
    """Reads the spec of a pipeline's template as a launch would."""
    settings = place.settings
    if reason := settings.template_not_set(pipeline.template_path):
        raise Trouble(
            f"{reason} {pipeline_name} cannot be launched.",
            f"signin template publish {pipeline_name} --to gs://BUCKET/templates --image IMAGE@sha256:…",
            is_fatal=pipeline_name != BACKFILL,  # many never read sign-ins from files
        )
    bucket = pipeline.template_path.removeprefix("gs://").partition("/")[0]
    name = pipeline.template_path.rpartition("/")[2].removesuffix(".json")
    viewer = f"storage buckets add-iam-policy-binding gs://{bucket}"
    try:
        spec = await TemplateSpecs(place.rest, settings).read(pipeline)
    except NoMetadataError:
        return "It has no metadata: Dataflow alone checks the parameters of a launch."
    except (OSError, msgspec.MsgspecError) as error:
        where = pipeline.template_metadata or pipeline.template_path
        raise Trouble(
            f"{where} is no readable template: {error}", f"signin template validate {where}"
        ) from error
    except Exception as error:
        known = {
            "NOT_FOUND": Trouble(
                "There is no such spec.",
                f"signin template publish {name} --to gs://{bucket}/templates --image IMAGE@sha256:…",
            ),
            "PERMISSION_DENIED": Trouble(
                "This service may not read it, or there is no such bucket: it lacks storage.objects.get.",
                await place.grant("roles/storage.objectViewer", viewer),
            ),
        }
        raise explained(error, settings.project, settings.storage_endpoint, known, api=STORAGE_API) from error
    if spec is None:
        raise NotAsked("Behind a local Dataflow there is no bucket.")
    return f"It takes {len(spec.parameters)} parameters."


async def bucket(place: Place, path: str) -> str:
    """Lists a bucket that jobs write to, at most one object."""
    settings = place.settings
    name = path.removeprefix("gs://").partition("/")[0]
    endpoint = settings.storage_endpoint.rstrip("/")
    if settings.dataflow_emulator_host and endpoint.startswith("https://"):
        raise NotAsked("A local Dataflow writes to no bucket.")
    url = f"{endpoint}/storage/v1/b/{quote(name, safe='')}/o"
    try:
        await place.rest.get(url, {"maxResults": "1"}, deadline_seconds=CALL_SECONDS)
    except Exception as error:
        viewer = f"storage buckets add-iam-policy-binding gs://{name}"
        known: Mapping[str, Trouble] = {
            "NOT_FOUND": Trouble(
                "There is no such bucket.",
                f"gcloud storage buckets create gs://{name} --project={settings.project} "
                f"--location={settings.region}",
            ),
            "PERMISSION_DENIED": Trouble(
                "This service may not look into it: it lacks storage.objects.list. The job's workers need "
                "roles/storage.objectAdmin on it.",
                await place.grant("roles/storage.objectViewer", viewer),
            ),
        }
        raise explained(error, settings.project, endpoint, known, api=STORAGE_API) from error
    return "It is there."
