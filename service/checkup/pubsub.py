"""The topic and the subscription: there, joined, and open to this service."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from service.checkup.findings import Trouble
from service.checkup.place import Place
from service.checkup.refusals import explained, refusal_of

API = "pubsub.googleapis.com"
CALL_SECONDS = 8.0
_LOCAL = "`signin up` and `signin local` make it"


async def topic(place: Place) -> str:
    """Looks at the topic, and asks whether this service may publish to it."""
    settings = place.settings
    name, project = settings.topic, settings.project
    publish = f"pubsub topics add-iam-policy-binding {name} --project={project}"
    may_look = True
    try:
        await _call(place, "pubsub.v1.Publisher", "GetTopic", topic=settings.topic_path)
    except Exception as error:
        refusal = refusal_of(error)
        if refusal is None or refusal.status != "PERMISSION_DENIED" or refusal.disabled_api:
            make = f"gcloud pubsub topics create {name} --project={project}"
            remedies = (_LOCAL, make) if settings.pubsub_emulator_host else (make,)
            missing = {"NOT_FOUND": Trouble("There is no such topic.", *remedies)}
            raise explained(error, project, _endpoint(place), missing, api=API) from error
        may_look = False  # roles/pubsub.publisher publishes without
    may_publish = await _allows(place, settings.topic_path, "pubsub.topics.publish")
    if may_publish is False:
        raise Trouble(
            "This service may not publish to it: it lacks pubsub.topics.publish.",
            await place.grant("roles/pubsub.publisher", publish),
        )
    if not may_look and may_publish is None:
        raise Trouble(
            "Whether this service may publish to it cannot be told: it lacks pubsub.topics.get.",
            await place.grant("roles/pubsub.viewer", publish),
            is_fatal=False,
        )
    return "It is there." if may_publish is None else "This service may publish to it."


async def subscription(place: Place) -> str:
    """Looks whether the subscription reads the topic; who reads it is the job."""
    settings = place.settings
    name, project = settings.subscription, settings.project
    create = f"gcloud pubsub subscriptions create {name} --topic={settings.topic} --project={project}"
    viewer = f"pubsub subscriptions add-iam-policy-binding {name} --project={project}"
    try:
        found = await _call(
            place, "pubsub.v1.Subscriber", "GetSubscription", subscription=settings.subscription_path
        )
    except Exception as error:
        remedies = (_LOCAL, create) if settings.pubsub_emulator_host else (create,)
        known = {
            "NOT_FOUND": Trouble("There is no such subscription: the job has nothing to read.", *remedies),
            "PERMISSION_DENIED": Trouble(
                "This service may not look at it: it lacks pubsub.subscriptions.get. The job's workers need "
                "roles/pubsub.subscriber and roles/pubsub.viewer on it.",
                await place.grant("roles/pubsub.viewer", viewer),
                is_fatal=False,
            ),
        }
        raise explained(error, project, _endpoint(place), known, api=API) from error
    if found.topic != settings.topic_path:
        raise Trouble(
            f"It reads {found.topic} and not {settings.topic_path}: the job would see none of our sign-ins.",
            f"Set SIGNIN_SUBSCRIPTION to one that does, or make it: {create.replace(name, name + '-2', 1)}",
        )
    return f"It reads {found.topic}."


async def _allows(place: Place, resource: str, permission: str) -> bool | None:
    """Whether this service has the permission; None where the server does not tell."""
    try:
        answer = await _call(
            place, "iam.v1.IAMPolicy", "TestIamPermissions", resource=resource, permissions=[permission]
        )
    except Exception as error:
        refusal = refusal_of(error)
        if refusal and refusal.status == "UNIMPLEMENTED":  # other emulators
            return None
        raise explained(error, place.settings.project, _endpoint(place), {}, api=API) from error
    return permission in answer.permissions


async def _call(place: Place, service: str, method: str, **fields: Any) -> Any:
    from google.iam.v1 import iam_policy_pb2
    from google.pubsub_v1 import types

    kinds = {
        "GetTopic": (types.GetTopicRequest.pb(), types.Topic.pb(), "topic"),
        "GetSubscription": (types.GetSubscriptionRequest.pb(), types.Subscription.pb(), "subscription"),
        "TestIamPermissions": (
            iam_policy_pb2.TestIamPermissionsRequest,
            iam_policy_pb2.TestIamPermissionsResponse,
            "resource",
        ),
    }
    request, response, routed = kinds[method]
    channel = await place.clients.pubsub_channel()
    stub = channel.unary_unary(
        f"/google.{service}/{method}",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )
    # By this header Google finds the server of the resource.
    metadata = (("x-goog-request-params", f"{routed}={quote(fields[routed], safe='')}"),)
    return await stub(request(**fields), timeout=CALL_SECONDS, metadata=metadata)


def _endpoint(place: Place) -> str:
    return place.settings.pubsub_emulator_host or place.settings.pubsub_endpoint
