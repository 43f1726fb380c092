"""What happens to sign-ins when their last home fails: the disk of the database is full."""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest

from service.config import Settings
from service.db import migrate
from tests.ingest_witness import (
    assert_refused_and_then_taken,
    without_pubsub,
    worker_count,  # noqa: F401
)
from tests.outbox_table import waiting_ids

pytestmark = [pytest.mark.soak, pytest.mark.timeout(240)]


def test_on_a_full_disk_an_event_is_refused_and_taken_again_when_there_is_room(tmp_path, workers):
    with without_pubsub(tmp_path, workers=workers) as server:
        # The kernel's limit on the size of a file fails a write as a full disk does, root or not.
        endless = resource.RLIM_INFINITY

        def limit(size):
            for pid in server.pids():
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, endless))

        assert_refused_and_then_taken(
            server, lambda: limit(4096), lambda: limit(endless), waiting=lambda: waiting_ids("", tmp_path)
        )


@pytest.fixture
def small_disk():
    """A file system of 4 MB."""
    with tempfile.TemporaryDirectory(prefix="signin-small-disk-") as directory:
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", directory]
        if not shutil.which("mount") or subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("a file system can be mounted by root only")
        try:
            yield Path(directory)
        finally:
            subprocess.run(["umount", "-l", directory], check=True)


def fill(disk):
    """Leaves not one byte free; returns the file that takes them."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass
    return ballast


def test_on_a_small_disk_that_fills_up_no_event_is_answered_without_a_home(tmp_path, small_disk, workers):
    url = f"sqlite:///{small_disk / 'signin.db'}"
    migrate(Settings(_env_file=None, database_url=url))
    with without_pubsub(tmp_path, url, workers=workers) as server:
        assert_refused_and_then_taken(
            server,
            lambda: fill(small_disk),
            (small_disk / "ballast").unlink,
            waiting=lambda: waiting_ids(url, tmp_path),
        )


def test_a_database_server_whose_disk_is_full_refuses_and_recovers(tmp_path, small_disk, postgres, workers):
    url = postgres.create(migrated=True)
    place = small_disk / "tables"
    place.mkdir()
    shutil.chown(place, postgres.directory.stat().st_uid)
    name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE TABLESPACE \"small_{name}\" LOCATION '{place}'")
        connection.execute(f'ALTER TABLE outbox SET TABLESPACE "small_{name}"')

        def fill_and_make_sure():
            fill(small_disk)
            with pytest.raises(psycopg.errors.DiskFull):  # 53100
                connection.execute(
                    "INSERT INTO outbox (event_id, data, attributes, bytes, created_at)"
                    " SELECT 'x', repeat('x', 1000)::bytea, '{}', 1000, now() FROM generate_series(1, 9999)"
                )

        try:
            with without_pubsub(tmp_path, url, workers=workers) as server:
                assert_refused_and_then_taken(
                    server,
                    fill_and_make_sure,
                    (small_disk / "ballast").unlink,
                    waiting=lambda: waiting_ids(url, tmp_path),
                )
        finally:
            connection.execute("ALTER TABLE outbox SET TABLESPACE pg_default")
            connection.execute(f'DROP TABLESPACE "small_{name}"')
