"""IAM of the local Pub/Sub as far as a caller asks what it may do: all that no fault forbids."""

from __future__ import annotations

from typing import Any

import grpc
from google.iam.v1 import iam_policy_pb2

from service.local import grpc_server
from service.local.broker import Broker
from service.local.faults import FaultSwitch
from service.local.grpc_server import Context, Method, StatusError

SERVICE = "google.iam.v1.IAMPolicy"
# The method that shows whether a permission is there.
_METHODS = {
    "pubsub.topics.get": "GetTopic",
    "pubsub.topics.publish": "Publish",
    "pubsub.subscriptions.get": "GetSubscription",
    "pubsub.subscriptions.consume": "Pull",
}


def handler(broker: Broker, faults: FaultSwitch) -> grpc.GenericRpcHandler:
    """TestIamPermissions, which tells nothing of a resource that is not there, as Google's does."""

    async def test(request: Any, _: Context) -> Any:
        answer = iam_policy_pb2.TestIamPermissionsResponse()
        try:
            (broker.topic if "/topics/" in request.resource else broker.subscription)(request.resource)
        except StatusError:
            return answer
        for permission in request.permissions:
            method = _METHODS.get(permission)
            if method and not faults.forbids(method):
                answer.permissions.append(permission)
        return answer

    request, response = iam_policy_pb2.TestIamPermissionsRequest, iam_policy_pb2.TestIamPermissionsResponse
    method = Method(test, request, response)
    return grpc_server.unary_handlers(SERVICE, {"TestIamPermissions": method}, faults)
