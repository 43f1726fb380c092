"""The service as process 1 of a read-only root with one writable directory, as another user."""

from __future__ import annotations

import json
import select
import signal
import sys
from pathlib import Path

import httpx
import pytest

from tests import container
from tests.dockerfile import ROOT, all_instructions, exec_form, read_stages, variables
from tests.pubsub_process import PubsubProcess
from tests.pubsub_topic import make_topic
from tests.serving import ARTICLE, JSON, NOBODY

SEEN = [
    Path(sys.prefix),
    Path(sys.base_prefix),
    *(ROOT / name for name in ("service", "transforms", "alembic")),
]
WRITES = """
import os, sys
print(os.getuid(), open("/proc/self/status").read().partition("CapEff:")[2].split()[0])
for place in sys.argv[1:]:
    try:
        open(place + "/written", "w").close()
    except OSError:
        continue
    print(place)
"""

pytestmark = pytest.mark.skipif(bool(container.why_not()), reason=container.why_not())


def environment(data, pubsub):
    """That of the image, its paths moved to where things are here."""
    given = variables(all_instructions(read_stages(), "service"))
    moved = {name: value.replace("/var/lib/signin", str(data)) for name, value in given.items()}
    return moved | {
        "PATH": f"{Path(sys.prefix) / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "PUBSUB_EMULATOR_HOST": pubsub,
        "DATAFLOW_EMULATOR_HOST": NOBODY,
        "SIGNIN_HOST": "127.0.0.1",
        "SIGNIN_PORT": "0",
    }


def test_the_container_of_these_tests_is_one(tmp_path):
    places = ["/", "/tmp", "/var/tmp", "/dev/shm", "/etc", "/usr", sys.prefix, str(ROOT / "service")]
    command = [sys.executable, "-c", WRITES, *places, str(tmp_path)]
    with container.started(command, tmp_path, SEEN, {}) as process:
        said, errors = process.communicate(timeout=container.START_SECONDS)
    assert said.split() == [str(container.UID), "0" * 16, str(tmp_path)], errors


@pytest.mark.soak
def test_the_service_works_where_it_may_write_to_its_data_directory_alone(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    init = exec_form(all_instructions(read_stages(), "service"), "ENTRYPOINT")
    command = [*init, sys.executable, "-m", "service", "serve", "--announce", "--workers", "2"]
    with PubsubProcess(tmp_path / "pubsub") as pubsub:
        make_topic(pubsub.address)
        with container.started(command, data, SEEN, environment(data, pubsub.address)) as process:
            assert select.select([process.stdout], [], [], container.START_SECONDS)[0], "it does not start"
            line = process.stdout.readline()
            assert line, process.communicate(timeout=5)[1]
            url = json.loads(line)["ready"]
            ready = httpx.get(f"{url}/readyz", timeout=10)
            taken = httpx.post(f"{url}/events/signin", content=ARTICLE, headers=JSON, timeout=10)
            container.send(process, signal.SIGTERM)
            _, errors = process.communicate(timeout=30)
    assert ready.status_code == 200, ready.text
    assert taken.status_code == 202, taken.text
    assert taken.json()["status"] == "published"
    assert process.returncode == 0, errors
    assert (data / "signin.db").stat().st_size


def test_a_signal_reaches_a_service_that_has_no_handler_for_it_yet(tmp_path):
    init = exec_form(all_instructions(read_stages(), "service"), "ENTRYPOINT")
    code = "import sys, time; print('here', flush=True); time.sleep(60)"
    with container.started(
        [*init, sys.executable, "-c", code], tmp_path, SEEN, environment(tmp_path, NOBODY)
    ) as process:
        assert process.stdout.readline() == "here\n"
        container.send(process, signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
