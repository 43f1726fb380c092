"""`POST /events/signin` and `POST /events/signin/batch`: check sign-ins, publish them, answer for each."""

from service.events import batch, single
from service.events.routes import router

router.add_api_route(single.PATH, single.publish_signin, **single.DOCUMENTATION)
router.add_api_route(batch.PATH, batch.publish_batch, **batch.DOCUMENTATION)

# The same, for whoever can do without a router.
ENDPOINTS = {single.PATH: single.publish_signin, batch.PATH: batch.publish_batch}

__all__ = ["ENDPOINTS", "router"]
