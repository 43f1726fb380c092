"""After an outage under load the outbox is empty again in no more time than the outage lasted."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from service.local.faults import Fault, set_faults
from tests.outbox_table import waiting_rows
from tests.pubsub_topic import make_topic
from tests.server_process import local_pubsub, service
from tests.serving import HANGING
from tests.soak.kill_rounds import CALLERS, OUTAGE, Tally, call, collect

pytestmark = [pytest.mark.soak, pytest.mark.timeout(120)]
HEALTHY_SECONDS = 1.5
OUTAGE_SECONDS = 6.0
LEAST_SPOOLED = 500


async def outage_under_load(server, pubsub, tally, fault, waiting):
    """Healthy for a while, then `fault`, then healthy under a quarter of the load.

    Returns how many events waited at the end of the outage, and how long they took to leave (seconds).
    """
    names = itertools.count()
    calls = [asyncio.create_task(call(server.port, tally, names, "event")) for _ in range(CALLERS)]
    try:
        await asyncio.sleep(HEALTHY_SECONDS)
        await asyncio.to_thread(set_faults, pubsub, [fault])
        await asyncio.sleep(OUTAGE_SECONDS)
        for each in calls[CALLERS // 4 :]:
            each.cancel()
        await asyncio.to_thread(set_faults, pubsub, [])
        ended = time.monotonic()
        count = await asyncio.to_thread(waiting)
        while await asyncio.to_thread(waiting):
            assert time.monotonic() - ended < 5 * OUTAGE_SECONDS
            await asyncio.sleep(0.02)
        return count, time.monotonic() - ended
    finally:
        for each in calls:
            each.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize(
    ("fault", "workers"),
    [(OUTAGE, 1), (OUTAGE, 2), (HANGING, 1), (Fault(method="Publish", delay_seconds=5), 1)],
    ids=["unavailable", "unavailable, 2 workers", "hanging", "5 s late"],
)
def test_the_outbox_is_empty_again_in_no_more_time_than_the_outage_lasted(
    tmp_path, database_url, fault, workers
):
    tally = Tally()
    with local_pubsub(tmp_path) as pubsub:
        make_topic(pubsub.address)
        with service(tmp_path, pubsub.address, database_url=database_url, workers=workers) as server:
            count, seconds = asyncio.run(
                outage_under_load(
                    server, pubsub.address, tally, fault, lambda: waiting_rows(database_url, tmp_path)
                )
            )
            assert server.stop() == 0
        collect(pubsub.address, tally)
    assert tally.statuses["spooled"] > LEAST_SPOOLED
    assert count > 0
    assert seconds <= OUTAGE_SECONDS, f"{count} events left in {seconds:.2f} s"
    assert tally.lost() == []
    assert tally.renamed() == []
