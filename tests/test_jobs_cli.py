"""`signin jobs` from launch to end, against a whole `signin up`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from service.clients import Clients
from service.config import Settings
from service.dataflow import Dataflow, Launch
from service.local.faults import Fault
from tests.running import Up, clean_environment, until

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    up = Up(tmp_path_factory.mktemp("up")).start()
    yield up
    assert up.stop() == 0


def jobs(up, *arguments, code=0, stream=""):
    done = subprocess.run(
        [sys.executable, "-m", "service", "jobs", *arguments],
        check=False,
        cwd=up.directory,
        env=clean_environment() | {"COLUMNS": "200", "HOME": str(up.directory)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == code, done.stderr
    if stream == "both":
        return done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def told(up, *arguments):
    return json.loads(jobs(up, *arguments, "--json"))


def test_a_job_is_launched_watched_changed_and_drained(up):
    dry = json.loads(jobs(up, "launch", "--validate-only"))
    assert (dry["valid"], dry["template_checked"]) == (True, True)
    launch = [
        "launch",
        "--name",
        "by-hand",
        "--environment",
        "num_workers=1",
        "--key",
        "monday",
        "--wait",
        "40",
    ]
    job = told(up, *launch)
    job_id = job["id"]
    assert (job["state"], job["environment"]["num_workers"]) == ("RUNNING", 1)
    assert told(up, *launch)["id"] == job_id  # the key makes it one launch
    assert [each["id"] for each in told(up, "list", "--name", "by-hand", "--state", "RUNNING")["jobs"]] == [
        job_id
    ]
    assert told(up, "list", "--pipeline", "audit")["jobs"] == []
    assert "subscription_in_use" in jobs(up, "launch", "--validate-only", code=1)
    assert json.loads(jobs(up, "launch", "--validate-only", "--shared-subscription"))["valid"]
    assert "invalid_parameters" in jobs(up, "launch", "--parameter", "colour=red", code=1)
    assert told(up, "scale", job_id, "--min", "1", "--max", "3")["max_workers"] == 3
    assert told(up, "messages", job_id, "--importance", "DEBUG")["messages"]
    assert "backlog" in jobs(up, "metrics", job_id)
    assert told(up, "metrics", job_id)["backlog"]["messages"] == 0
    assert "--yes" in jobs(up, "force-cancel", job_id, code=2)
    assert "action_not_allowed" in jobs(up, "force-cancel", job_id, "--yes", code=1)
    updated = told(up, "update", job_id, "--parameter", "pipeline_version=2")
    assert [each["kind"] for each in updated["attempts"]] == ["launch", "update"]
    until(lambda: told(up, "show", job_id)["attempt"] == 2, 60)
    assert "attempt 2" in jobs(up, "show", job_id)
    drained = told(up, "drain", job_id, "--deadline", "600", "--on-deadline", "cancel", "--wait", "60")
    assert (drained["state"], drained["drain_deadline_seconds"]) == ("DRAINED", 600)
    followed = [json.loads(line) for line in jobs(up, "events", job_id, "--follow", "--json").splitlines()]
    paged = [json.loads(line) for line in jobs(up, "events", job_id, "--json").splitlines()]
    assert followed == paged
    assert followed[0]["kind"] == "created"
    assert followed[-1]["detail"]["to"] == "DRAINED"
    assert "created" in jobs(up, "events", job_id)


def test_a_launch_that_dataflow_refuses_fails_the_command(up):
    up.dataflow_fault(Fault("LaunchFlexTemplate", "PERMISSION_DENIED"))
    try:
        for wait in ([], ["--wait", "30"]):
            told = jobs(up, "launch", *wait, code=1, stream="both")
            assert "REJECTED" in told
            assert "PERMISSION_DENIED: injected by the fault switch" in told
    finally:
        up.dataflow_fault()


def test_a_backfill_that_is_done_before_it_was_seen_running_is_a_launch_that_went_well(up):
    file = up.directory / "signins.ndjson"
    file.write_text('{"userid": "93234234", "date": "2017-10-17T20:57:17.338320"}\n')
    backfill = ["launch", "--pipeline", "backfill-signin", "--name", "backfill", "--key", "backfill"]
    backfill += ["--parameter", f"input_files={file}"]
    job_id = told(up, *backfill)["id"]
    until(lambda: told(up, "show", job_id)["state"] == "DONE", 60)
    assert told(up, *backfill, "--wait", "30")["state"] == "DONE"  # by its key the same job
    said = jobs(up, *backfill, "--wait", "30", stream="both")
    assert f"job {job_id} has run to its end" in said
    assert f"{job_id} DONE" in said


def test_who_asks_a_backfill_for_what_a_batch_job_cannot_do_is_told_so(up):
    up.dataflow_fault(Fault("LaunchFlexTemplate", "UNAVAILABLE"))
    try:
        job_id = told(up, "launch", "--pipeline", "backfill-signin", "--parameter", "input_files=/a")["id"]
        for act in (["drain", job_id], ["scale", job_id, "--max", "2"], ["update", job_id]):
            refusal = jobs(up, *act, code=1)
            assert "A batch job cannot be" in refusal or "of a batch job's workers cannot be" in refusal
        assert told(up, "cancel", job_id)["requested_state"] == "CANCELLED"
    finally:
        up.dataflow_fault()


async def test_a_job_of_somebody_else_is_found_and_adopted(up):
    addresses = {name.lower(): value for name, value in up.environment.items() if "EMULATOR" in name}
    settings = Settings(_env_file=None, **addresses)
    clients = Clients(settings)
    launch = Launch(settings.project, settings.region, "strange", settings.template_path, "not-ours")
    try:
        strange = (await Dataflow(clients, settings).launch(launch)).id
    finally:
        await clients.close()
    assert strange in jobs(up, "unmanaged")
    job = told(up, "adopt", strange)
    assert (job["adopted"], job["name"]) == (True, "strange")
    assert told(up, "cancel", job["id"], "--wait", "40")["state"] == "CANCELLED"
    assert told(up, "unmanaged")["jobs"] == []
