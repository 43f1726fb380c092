"""The /jobs routes: launch, list, look at, follow, change and end jobs."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from service.jobs import acts, history, launch, reading, telemetry, unmanaged
from service.jobs.desk import Desk
from service.jobs.query import only_known

__all__ = ["Desk", "router"]

router = APIRouter(tags=["jobs"], dependencies=[Depends(only_known)])
# In this order: /jobs/unmanaged is no job.
for _part in (launch, unmanaged, reading, acts, history, telemetry):
    router.include_router(_part.router)
