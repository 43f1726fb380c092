"""The recipes of `deploy/` and `compose.yaml`: settings that exist, routes that exist, closed containers."""

from __future__ import annotations

import re

import pytest
import yaml

from service.auth import scopes
from service.config import sources
from service.config.variables import KNOWN
from service.db import database, engines
from service.workers import END_SECONDS
from tests.dockerfile import all_instructions, health_command, read_stages, variables
from tests.recipes import files

STAGES = read_stages()
CONTAINERS = list(files.containers())
COMPOSE = files.compose()
DOCUMENTS = {path.name: document for path, document in files.documents(files.KUBERNETES)}
TERRAFORM = files.terraform()
TERRAFORM_TEXT = "\n".join(TERRAFORM.values())
SERVICES = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
OPEN_ROUTES = {path for (method, path), scope in scopes.RULES.items() if method == "GET" and not scope}
OTHER_VARIABLES = {"PUBSUB_EMULATOR_HOST", "DATAFLOW_EMULATOR_HOST", "BIGQUERY_EMULATOR_HOST"}


def terraform_settings():
    (block,) = re.findall(r"\n  settings = \{\n(.*?)\n  \}", TERRAFORM["locals.tf"], re.DOTALL)
    return set(re.findall(r"^    (SIGNIN_\w+)\s*=", block, re.MULTILINE))


def given_settings():
    """Every variable that a recipe sets: where, and its name."""
    for container in CONTAINERS:
        yield from ((container.where, name) for name in container.settings)
    for name, service in SERVICES.items():
        if name in OURS:
            yield from ((f"compose: {name}", each) for each in service.get("environment", ()))
    yield from (("terraform", name) for name in terraform_settings())
    yield from (("terraform", name) for name in re.findall(r'"(SIGNIN_\w+)"', TERRAFORM_TEXT))
    for target in ("service", "local"):
        names = variables(all_instructions(STAGES, target))
        yield from (("Dockerfile", name) for name in names if name.startswith("SIGNIN_"))


def seconds(text):
    (number,) = re.fullmatch(r"(\d+)s", text).groups()
    return int(number)


def test_every_variable_of_a_recipe_is_a_setting():
    given = list(given_settings())
    assert {where.split("/")[0].split(":")[0] for where, _ in given} == {
        "kubernetes", "cloud-run", "compose", "terraform", "Dockerfile",
    }  # fmt: skip
    assert [each for each in given if each[1] not in KNOWN | OTHER_VARIABLES] == []


def test_every_platform_gives_the_service_the_same_variables():
    kubernetes = {each.where: set(each.settings) for each in CONTAINERS if each.arguments[-1] == "serve"}
    assert len(kubernetes) == 2
    assert all(names == terraform_settings() for names in kubernetes.values())


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda each: each.where)
def test_the_settings_of_a_container_are_valid(container, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "url"
    secret.write_text("postgresql://signin:password@10.0.0.3:5432/signin?sslmode=require")
    mounts = {each["mountPath"]: each["name"] for each in container.said["volumeMounts"]}
    path = container.settings["SIGNIN_DATABASE_URL_FILE"]
    assert path.rpartition("/")[0] in mounts
    for name, value in {**container.settings, "SIGNIN_DATABASE_URL_FILE": str(secret)}.items():
        monkeypatch.setenv(name, value)
    settings = sources.load()
    assert settings.async_database_url.startswith("postgresql+psycopg://")
    if container.arguments[-1] == "serve":
        settings.require_startable()
        settings.model_copy(update={"host": "0.0.0.0"}).require_closed()


def test_a_container_is_named_by_its_digest_or_by_what_somebody_gives():
    (image,) = DOCUMENTS["kustomization.yaml"]["images"]
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", image["digest"])
    for container in CONTAINERS:
        if container.where.startswith("kubernetes"):
            assert container.image == image["name"]
    for path in files.CLOUD_RUN.glob("*.yaml"):
        assert set(re.findall(r"image: (\S+)", path.read_text())) == {"${SERVICE_IMAGE}"}
    for service in SERVICES.values():
        assert re.fullmatch(r"\$\{[A-Z_]+_IMAGE:-[^:]+:[^:]+\}", service["image"])
        assert "latest" not in service["image"]
    assert set(re.findall(r"\bimage\s+= (\S+)", TERRAFORM_TEXT)) == {"var.service_image"}
    assert "@sha256:[0-9a-f]{64}$" in TERRAFORM["variables.tf"]


def test_a_probe_asks_a_route_that_is_open():
    asked = {re.search(r"/\w+z'", health_command(all_instructions(STAGES, "service"))[-1])[0].rstrip("'")}
    asked |= set(re.findall(r"health_uri (\S+)", (files.DEPLOY / "compose/Caddyfile").read_text()))
    asked |= set(re.findall(r'path = "(/\w+)"\n', TERRAFORM["service.tf"]))
    for container in CONTAINERS:
        probes = [probe for name, probe in container.said.items() if name.endswith("Probe")]
        assert probes or container.arguments[-1] == "migrate"
        asked |= {probe["httpGet"]["path"] for probe in probes}
        ports = {
            str(each[key]) for each in container.said.get("ports", ()) for key in ("name", "containerPort")
        }
        assert {str(probe["httpGet"]["port"]) for probe in probes} <= ports
    assert asked == {"/healthz", "/startupz", "/readyz"}
    assert asked <= OPEN_ROUTES


def test_a_pod_is_what_the_restricted_profile_wants():
    pod_security = DOCUMENTS["namespace.yaml"]["metadata"]["labels"]
    assert pod_security["pod-security.kubernetes.io/enforce"] == "restricted"
    user = variables_user("service")
    ours = [each for each in CONTAINERS if each.where.startswith("kubernetes")]
    assert len(ours) == 2
    for container in ours:
        pod = container.pod["securityContext"]
        assert pod["runAsNonRoot"]
        assert (pod["runAsUser"], pod["runAsGroup"]) == user
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container.said["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not container.pod["automountServiceAccountToken"]
        assert "memory" in container.said["resources"]["limits"]


def variables_user(target):
    (user,) = (rest for word, rest in all_instructions(STAGES, target) if word == "USER")
    return tuple(map(int, user.split(":")))


def test_what_is_writable_is_the_data_directory():
    directory = variables(all_instructions(STAGES, "service"))["SIGNIN_DATA_DIR"]
    for container in CONTAINERS:
        volumes = {each["name"]: each for each in container.pod["volumes"]}
        for mount in container.said["volumeMounts"]:
            if mount["mountPath"] == directory:
                assert "emptyDir" in volumes[mount["name"]]
            else:
                assert "secret" in volumes[mount["name"]]
    for name in OURS:
        places = [*SERVICES[name].get("tmpfs", ()), *SERVICES[name].get("volumes", ())]
        assert [place for place in places if directory not in place.split(":")[:2]] == []


def test_a_service_of_compose_has_no_root_and_nothing_to_write_to_but_what_is_named():
    for name, service in SERVICES.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service
        user = service.get("user") or ":".join(map(str, variables_user(service["build"]["target"])))
        assert int(user.split(":")[0]) > 0, name
        assert service.get("cap_add", []) in ([], ["NET_BIND_SERVICE"])


def test_compose_leaves_this_machine_nowhere_and_keeps_the_stack_on_loopback():
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports == ["127.0.0.1:${SIGNIN_PUBLISHED_ON:-8080}:8080"]
    together = {name for name, service in SERVICES.items() if service.get("network_mode") == "service:stack"}
    assert together == {"replica-1", "replica-2", "balancer"}
    caddy = (files.DEPLOY / "compose/Caddyfile").read_text()
    behind = re.search(r"reverse_proxy (.*) \{", caddy)[1].split()
    replicas = [SERVICES[name]["environment"] for name in ("replica-1", "replica-2")]
    assert behind == [f"{each['SIGNIN_HOST']}:{each['SIGNIN_PORT']}" for each in replicas]
    assert {each["SIGNIN_HOST"] for each in replicas} == {"127.0.0.1"}
    served = dict(re.findall(r"--(\w+)-port=(\d+)", " ".join(SERVICES["stack"]["command"])))
    named = {
        "pubsub": "PUBSUB_EMULATOR_HOST",
        "dataflow": "DATAFLOW_EMULATOR_HOST",
        "bigquery": "BIGQUERY_EMULATOR_HOST",
        "monitoring": "SIGNIN_MONITORING_ENDPOINT",
    }
    for server, variable in named.items():
        assert {each[variable].rpartition("//")[2] for each in replicas} == {f"127.0.0.1:{served[server]}"}


def test_the_files_that_compose_names_are_there():
    for secret in COMPOSE["secrets"].values():
        assert secret["file"].startswith("${SIGNIN_SECRETS:-./deploy/compose}/")
        assert (files.DEPLOY / "compose" / secret["file"].rpartition("/")[2]).is_file()
    password = (files.DEPLOY / "compose/postgres_password").read_text()
    assert f":{password}@database:5432/" in (files.DEPLOY / "compose/database_url").read_text()
    installed = "/opt/signin/lib/python3.11/site-packages/"
    for name, value in SERVICES["replica-1"]["environment"].items():
        if name.endswith("_METADATA"):
            assert (files.ROOT / value.removeprefix(installed)).is_file()


def test_who_is_told_to_end_has_the_time_for_it():
    pod = DOCUMENTS["deployment.yaml"]["spec"]["template"]["spec"]
    (service,) = pod["containers"]
    before = int(service["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert before + END_SECONDS < pod["terminationGracePeriodSeconds"]
    for name in ("replica-1", "replica-2", "stack"):
        assert seconds(SERVICES[name]["stop_grace_period"]) > END_SECONDS


def test_kubernetes_keeps_one_pod_of_at_least_two():
    assert DOCUMENTS["autoscaler.yaml"]["spec"]["minReplicas"] >= 2
    assert DOCUMENTS["autoscaler.yaml"]["spec"]["scaleTargetRef"]["name"] == "signin"
    assert DOCUMENTS["disruption-budget.yaml"]["spec"]["maxUnavailable"] == 1
    deployment = DOCUMENTS["deployment.yaml"]["spec"]
    assert "replicas" not in deployment  # the autoscaler's
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    labels = deployment["template"]["metadata"]["labels"]
    selectors = [deployment["selector"], DOCUMENTS["disruption-budget.yaml"]["spec"]["selector"]]
    selectors += [{"matchLabels": DOCUMENTS["service.yaml"]["spec"]["selector"]}]
    selectors += [DOCUMENTS["network-policy.yaml"]["spec"]["podSelector"]]
    selectors += [DOCUMENTS["pod-monitor.yaml"]["spec"]["selector"]]
    selectors += [
        each["labelSelector"] for each in deployment["template"]["spec"]["topologySpreadConstraints"]
    ]
    assert all(each == {"matchLabels": labels} for each in selectors)


def test_what_the_network_policy_says_in_a_comment_is_a_rule_that_lets_telemetry_out():
    text = (files.KUBERNETES / "network-policy.yaml").read_text()
    commented = re.sub(r"^    # (?= *[-a-z])", "    ", text, flags=re.MULTILINE)
    *egress, telemetry, database = yaml.safe_load(commented)["spec"]["egress"]
    assert [*egress, database] == DOCUMENTS["network-policy.yaml"]["spec"]["egress"]
    assert [each["port"] for each in telemetry["ports"]] == [4317, 4318]
    assert telemetry["to"][0].keys() == {"namespaceSelector", "podSelector"}


def test_the_service_named_signin_gives_the_pods_no_variables():
    # SIGNIN_PORT=tcp://10.0.0.1:80 would be one of them.
    assert DOCUMENTS["deployment.yaml"]["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_the_kustomization_has_every_manifest_but_those_that_need_more_than_kubernetes():
    listed = set(DOCUMENTS["kustomization.yaml"]["resources"])
    assert DOCUMENTS.keys() - listed == {"kustomization.yaml", "pod-monitor.yaml"}
    assert listed <= DOCUMENTS.keys()


def test_cloud_run_keeps_two_instances_and_their_processor():
    (service,) = (each for path, each in files.documents(files.CLOUD_RUN) if path.name == "service.yaml")
    assert int(service["metadata"]["annotations"]["run.googleapis.com/minScale"]) >= 2
    annotations = service["spec"]["template"]["metadata"]["annotations"]
    assert annotations["run.googleapis.com/cpu-throttling"] == "false"
    assert "cpu_idle          = false" in TERRAFORM["service.tf"]
    (least,) = re.findall(
        r'variable "min_instances" \{.*?default\s+= (\d+)', TERRAFORM["variables.tf"], re.DOTALL
    )
    assert int(least) >= 2


def test_who_names_the_invokers_of_cloud_run_says_which_header_their_token_needs():
    paths = (files.CLOUD_RUN / "service.yaml", *(files.DEPLOY / "terraform").glob("*.tf"))
    texts = {path.name: path.read_text() for path in paths}
    naming = {name for name, text in texts.items() if re.search(r'run\.invoker|variable "invokers"', text)}
    assert naming == {"permissions.tf", "variables.tf", "service.yaml"}
    assert {name for name in naming if "X-Serverless-Authorization" not in texts[name]} == set()


def test_a_variable_of_the_cloud_run_files_is_told_of():
    told = (files.CLOUD_RUN / "service.yaml").read_text().partition("apiVersion")[0]
    used = {
        name
        for path in files.CLOUD_RUN.glob("*.yaml")
        for name in re.findall(r"\$\{(\w+)\}", path.read_text())
    }
    assert used == files.GIVEN.keys()
    assert [name for name in used if name not in told] == []


def test_the_database_has_a_connection_for_each_that_the_service_may_hold():
    committing = database._COMMITTING["pool_size"] + database._COMMITTING["max_overflow"]
    each = engines.POOL_SIZE + engines.POOL_OVERFLOW + committing
    assert f"var.max_instances * {each} + 20" in TERRAFORM["database.tf"]
    assert f"up to {each} connections" in (files.KUBERNETES / "autoscaler.yaml").read_text()
    assert f"may hold {each} connections" in TERRAFORM["variables.tf"]


def test_every_file_of_the_recipes_that_the_readme_names_is_there():
    named = set(re.findall(r"\bdeploy/[\w./-]*\w", (files.ROOT / "README.md").read_text()))
    assert len(named) > 3
    assert [name for name in named if not (files.ROOT / name).exists()] == []
