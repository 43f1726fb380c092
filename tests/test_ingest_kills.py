"""No sign-in that was answered is lost when the service is killed or stopped."""

from __future__ import annotations

import pytest

from service.local.faults import Fault, set_faults
from tests.ingest_witness import Witness
from tests.outbox_table import waiting_rows
from tests.pubsub_topic import make_topic, pull_all
from tests.running import until
from tests.server_process import local_pubsub, service
from tests.soak import kill_rounds

pytestmark = [pytest.mark.soak, pytest.mark.timeout(240)]


def test_no_event_that_was_answered_is_lost_when_the_service_is_killed_under_load(tmp_path, database_url):
    tally = kill_rounds.run(tmp_path, 2, database_url=database_url, quiet=True)
    assert len(tally.promised) >= 2 * kill_rounds.LEAST_ANSWERS
    assert {"published", "spooled"} <= tally.statuses.keys()
    assert tally.lost() == []
    assert tally.renamed() == []


def test_two_workers_that_are_killed_under_load_lose_nothing_either(tmp_path, database_url):
    tally = kill_rounds.run(tmp_path, 2, database_url=database_url, workers=2, quiet=True)
    assert {"published", "spooled"} <= tally.statuses.keys()
    assert tally.lost() == []
    assert tally.renamed() == []


def test_what_waited_in_the_outbox_at_sigterm_is_published_after_the_next_start(tmp_path, database_url):
    with local_pubsub(tmp_path) as pubsub:
        make_topic(pubsub.address)
        set_faults(pubsub.address, [Fault(method="Publish", code="UNAVAILABLE")])
        with service(tmp_path, pubsub.address, database_url=database_url) as server:
            witness = Witness(server)
            assert {answer.content["status"] for answer in witness.press(300)} == {"spooled"}
            assert server.stop() == 0
        set_faults(pubsub.address, [])
        with service(tmp_path, pubsub.address, database_url=database_url) as server:
            until(lambda: waiting_rows(database_url, tmp_path) == 0)
            assert server.stop() == 0
        assert {message.attributes["event_id"] for message in pull_all(pubsub.address)} == witness.promised
