"""deploy/terraform: every reference resolves, and the README tells of every right that it gives."""

from __future__ import annotations

import re

from tests.recipes import files

TERRAFORM = files.terraform()
TERRAFORM_TEXT = "\n".join(TERRAFORM.values())
WHO = {
    "service": "service",
    "migration": "migration",
    "worker": "workers",
    "pubsub": "Pub/Sub",
    "callers": "callers",
}


def test_every_reference_of_terraform_is_to_something_that_is_declared():
    declared = {
        f"{kind}.{name}"
        for kind, name in re.findall(r'^resource "(\w+)" "(\w+)"', TERRAFORM_TEXT, re.MULTILINE)
    }
    declared |= {
        f"data.{kind}.{name}"
        for kind, name in re.findall(r'^data "(\w+)" "(\w+)"', TERRAFORM_TEXT, re.MULTILINE)
    }
    found = {
        f"{data}{kind}.{name}"
        for data, kind, name in re.findall(r"\b(data\.)?((?:google|terraform)_\w+)\.(\w+)", TERRAFORM_TEXT)
    }
    assert len(declared) > 40
    assert found - declared == set()
    for kind, word in (("variable", "var"), ("ephemeral", "ephemeral")):
        names = {
            a or b
            for a, b in re.findall(
                rf'^{kind} "(?:random_password" "(\w+)|(\w+))"', TERRAFORM_TEXT, re.MULTILINE
            )
        }
        used = set(re.findall(rf"\b{word}\.(?:random_password\.)?(\w+)", TERRAFORM_TEXT))
        assert names == used, f"{kind}: declared and used differ"
    locals_told = set(re.findall(r"^  (\w+)\s+= ", TERRAFORM["locals.tf"], re.MULTILINE))
    assert set(re.findall(r"\blocal\.(\w+)", TERRAFORM_TEXT)) <= locals_told


def test_every_variable_and_output_of_terraform_says_what_it_is():
    for file in ("variables.tf", "outputs.tf"):
        blocks = re.findall(
            r'^(?:variable|output) "(\w+)" \{\n(.*?)^\}', TERRAFORM[file], re.MULTILINE | re.DOTALL
        )
        assert len(blocks) > 4
        assert [
            name for name, block in blocks if not re.search(r"^  description = ", block, re.MULTILINE)
        ] == []


def test_nothing_of_the_datasets_is_for_the_service_but_the_dead_letters():
    (right,) = re.findall(
        r'dataset_iam_member" "service_\w+" \{(.*?)\}', TERRAFORM["permissions.tf"], re.DOTALL
    )
    assert "google_bigquery_dataset.dead_letters." in right
    assert "roles/bigquery.dataViewer" in right


def granted():
    """Who has which role on what, by the names of `permissions.tf`."""
    for kind, name, body in re.findall(
        r'^resource "(google_\w+_iam_member)" "(\w+)" \{\n(.*?)^\}',
        TERRAFORM["permissions.tf"],
        re.MULTILINE | re.DOTALL,
    ):
        (role,) = re.findall(r'role\s+= "(\S+)"', body)
        lines = [line for line in body.splitlines() if "member " not in line]
        targets = re.findall(r"(google_\w+\.\w+)", "\n".join(lines)) + re.findall(
            r"var\.backfill_buckets", body
        )
        yield (
            WHO[name.split("_")[0]],
            role,
            "the project" if kind.startswith("google_project_") else targets[0],
        )


def test_the_readme_tells_of_every_right_and_what_it_is_for():
    text = (files.ROOT / "README.md").read_text()
    table = text.partition("| who | role | on | for |")[2].partition("\n\n")[0]
    rows = [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert all(len(row) == 4 and row[3] for row in rows)
    assert sorted(tuple(row[:3]) for row in rows) == sorted(granted())
