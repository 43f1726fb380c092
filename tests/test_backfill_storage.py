"""A backfill from Cloud Storage: Beam's own file system and Google's client against the tests' server."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

from tests.bigquery_servers import PROJECT, local_bigquery
from tests.running import environment
from tests.service_account import write_service_account
from tests.storage_server import StorageServer
from transforms.bigquery_tables import client

ROOT = Path(__file__).parents[1]
READ_BYTES = 16 * 1024 * 1024  # that Beam asks of Cloud Storage at once
GOOD = b'{"userid": "u%d", "date": "2017-10-17T20:57:17.338320"}\n'


def backfill(files: str, bigquery: str, storage: str, account: Path) -> list[dict[str, object]]:
    """Runs the program over the files; what it said."""
    tables = ["--output_table=cloud.signins", "--dead_letter_table=cloud.letters"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pipeline.backfill_signin"),
            *(f"--project={PROJECT}", f"--input_files={files}", *tables),
        ],
        cwd=ROOT,
        env=environment(
            BIGQUERY_EMULATOR_HOST=bigquery,
            STORAGE_EMULATOR_HOST=storage,
            GOOGLE_APPLICATION_CREDENTIALS=str(account),
        ),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_files_of_a_bucket_become_rows_and_dead_letters_with_file_and_line(tmp_path: Path):
    long = b"x" * (READ_BYTES + 5)  # the line behind it takes a second read
    files = {
        "2024/a.json": GOOD % 1 + long + b"\n" + GOOD % 2,
        "2024/b.json.gz": gzip.compress(GOOD % 3 + b"no sign-in\n" + GOOD % 4),
        "2024/c.json": gzip.compress(GOOD % 5 + b"\xff\n"),
        "2024/notes.txt": GOOD % 6,
        "2025/a.json": GOOD % 7,
    }
    with StorageServer("bucket") as storage, local_bigquery(tmp_path) as bigquery:
        storage.objects = {("bucket", name): content for name, content in files.items()}
        storage.encodings["bucket", "2024/c.json"] = "gzip"  # which Cloud Storage would unpack if asked to
        account = write_service_account(tmp_path / "account.json", f"{storage.url}/token")
        events = backfill("gs://bucket/2024/*.json*", bigquery, storage.url, account)
        warehouse = client(PROJECT, bigquery)
        rows = warehouse.query("SELECT userid FROM cloud.signins ORDER BY userid").result(timeout=30)
        userids = [row["userid"] for row in rows]
        letters = list(
            warehouse.query("SELECT reason, payload, attributes FROM cloud.letters").result(timeout=30)
        )
        warehouse.close()
    assert [event["state"] for event in events if event["event"] == "state"] == ["RUNNING", "DONE"]
    assert userids == ["u1", "u2", "u3", "u4", "u5"]
    found = {}
    for letter in letters:
        place = {record["key"]: record["value"] for record in letter["attributes"]}
        found[place["file"], place["line"]] = letter["reason"], letter["payload"]
    assert found == {
        ("gs://bucket/2024/a.json", "2"): ("line_too_long", long[:6_000_000]),
        ("gs://bucket/2024/b.json.gz", "2"): ("invalid_json", b"no sign-in"),
        ("gs://bucket/2024/c.json", "2"): ("invalid_utf8", b"\xff"),
    }
    assert storage.bearers == {"Bearer a-token"}
    starts = {span.partition("-")[0] for name, span in storage.ranges if name == "2024/a.json"}
    assert len(starts) > 1, storage.ranges
