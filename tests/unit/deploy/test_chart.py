"""Laws of the Helm chart: objects are valid, pods restricted, and names, settings and topics those of the code."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import kubernetes_validate
import pytest
from chart import CHART, COMBINATIONS, PLAIN, ROOT, S3, merged, pods, rendered, template

import agents.worker
from agents.cli import COMMANDS
from agents.ranker.app import group_of
from agents.worker import RANKING, ROLES
from schemas.settings import SECRETS, Settings
from streams.kafka.topics import TOPICS

CUSTOM = {"ScaledObject", "PodMonitor", "PrometheusRule", "HTTPRoute", "ExternalSecret"}
"Kinds of other projects: an API server with their definitions checks them (`make cluster`)."
KNOWN = {f"RIFFLE_{field.name.upper()}" for field in fields(Settings)}
FILES = {"secrets": {"files": "riffle-files"}}
TLS = {"certificate": "tls.crt", "key": "tls.key", "authorities": "ca.crt", "serverName": "workers.riffle"}
ROUTED = {"httpRoute": {"enabled": True, "parentRefs": [{"name": "shared"}]}}
EVERY = pytest.mark.parametrize("name", COMBINATIONS)


@functools.cache
def made(name: str) -> list[dict[str, Any]]:
    return rendered(COMBINATIONS[name])


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [one for one in objects if one["kind"] == kind]


def containers(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [container for pod in pods(objects).values() for container in pod["spec"]["containers"]]


def refused(values: Mapping[str, Any]) -> str:
    ran = template(merged(PLAIN, values))
    assert ran.returncode != 0, values
    return ran.stderr


@EVERY
def test_every_object_is_valid(name: str) -> None:
    for one in made(name):
        if one["kind"] not in CUSTOM:
            kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)


def test_the_combinations_turn_each_option_on() -> None:
    templates = {path.name for path in (CHART / "templates").glob("*.yaml")} - {"checks.yaml"}
    sources = set(
        re.findall(
            r"# Source: riffle/templates/(\S+)", "".join(template(merged(PLAIN, v)).stdout for v in COMBINATIONS.values())
        )
    )
    assert sources == templates
    assert {one["kind"] for name in COMBINATIONS for one in made(name)} >= CUSTOM | {"CronJob", "HorizontalPodAutoscaler"}


@EVERY
def test_pods_are_restricted_and_get_no_token_nor_variables_of_services(name: str) -> None:
    """The rules of Pod Security's profile `restricted`, and a read-only root file system."""
    for pod in pods(made(name)).values():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is spec["enableServiceLinks"] is False
        context = spec["securityContext"]
        assert (context["runAsNonRoot"], context["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert {"/tmp", "/var/lib/riffle"} <= mounts
            assert {mount["name"] for mount in container["volumeMounts"]} <= {
                *(volume["name"] for volume in spec["volumes"]),
                "state",
            }
            assert container["resources"]["limits"]["memory"]
            assert not container["image"].endswith(":latest")


@EVERY
def test_settings_exist_can_work_and_hold_no_secret(name: str) -> None:
    (config,) = (one for one in of_kind(made(name), "ConfigMap") if one["metadata"]["name"] == "riffle")
    data = config["data"]
    assert set(data) <= KNOWN - {f"RIFFLE_{secret.upper()}" for secret in SECRETS}
    settings = Settings.from_env({**data, "RIFFLE_HOME": "/tmp"})
    (worker,) = of_kind(made(name), "StatefulSet")
    assert worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > settings.stop_timeout_s
    assert worker["spec"].get("replicas", 1) <= settings.partitions
    for container in containers(made(name)):
        own = {variable["name"] for variable in container.get("env", ())}
        assert own <= KNOWN | {"POD_IP"}


@EVERY
def test_selectors_select_their_own_pods_only(name: str) -> None:
    labels = {owner: pod["metadata"]["labels"] for owner, pod in pods(made(name)).items()}
    for one in made(name):
        if one["kind"] in {"StatefulSet", "Deployment"}:
            selector = one["spec"]["selector"]["matchLabels"]
            chosen = [owner for owner, of in labels.items() if selector.items() <= of.items()]
            assert chosen == [f"{one['kind']}/{one['metadata']['name']}"]
        if one["kind"] == "Service":
            assert [owner for owner, of in labels.items() if one["spec"]["selector"].items() <= of.items()] == [
                "StatefulSet/riffle-worker"
            ]
    names = [(one["kind"], one["metadata"]["name"]) for one in made(name)]
    assert len(set(names)) == len(names)


@EVERY
def test_probes_ask_what_the_process_serves(name: str) -> None:
    for owner, pod in pods(made(name)).items():
        (container,) = pod["spec"]["containers"]
        if owner.startswith(("CronJob", "Deployment/riffle-encoder")):
            assert not [key for key in container if key.endswith("Probe")]
            continue
        (port,) = container["ports"]
        assert port["containerPort"] == (Settings().rank_port if owner.endswith("ranking") else Settings().web_port)
        for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
            scheme = "HTTPS" if name == "tokens" else "HTTP"
            assert container[probe]["httpGet"] == {"path": path, "port": port["name"], "scheme": scheme}


@EVERY
def test_accounts_and_secrets_that_pods_name_are_made_or_given(name: str) -> None:
    accounts = {one["metadata"]["name"] for one in of_kind(made(name), "ServiceAccount")} | {"default"}
    assert {pod["spec"]["serviceAccountName"] for pod in pods(made(name)).values()} <= accounts
    assert not of_kind(made(name), "Secret"), "values are stored with each release, so no secret is one"


@EVERY
def test_http_needs_tokens_or_the_network_decides(name: str) -> None:
    (config,) = (one for one in of_kind(made(name), "ConfigMap") if "RIFFLE_WEB_HOST" in one["data"])
    http = Settings.from_env({**config["data"], "RIFFLE_HOME": "/tmp"}).http
    http.require_tokens(config["data"]["RIFFLE_WEB_HOST"])
    assert bool(http.tokens_file) == (name == "tokens")


def test_tokens_and_certificates_are_files_of_the_secret_and_metrics_are_read_with_one() -> None:
    (config,) = of_kind(made("tokens"), "ConfigMap")
    http = Settings.from_env({**config["data"], "RIFFLE_HOME": "/tmp"}).http
    folder = "/etc/riffle/secrets"
    found = (http.tokens_file, http.token_file, http.cert_file, http.key_file, http.ca_file)
    assert found == tuple(f"{folder}/{key}" for key in ("tokens", "token", "tls.crt", "tls.key", "ca.crt"))
    assert http.server_name == "workers.riffle"
    for container in containers(made("tokens")):
        assert {"name": "secrets", "mountPath": folder, "readOnly": True} in container["volumeMounts"]
    (monitor,) = of_kind(made("tokens"), "PodMonitor")
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        assert endpoint["authorization"]["credentials"] == {"name": "riffle-files", "key": "metrics-token"}
        assert (endpoint["scheme"], endpoint["tlsConfig"]["serverName"]) == ("https", "workers.riffle")
        assert endpoint["tlsConfig"]["ca"]["secret"] == {"name": "riffle-files", "key": "ca.crt"}
    (monitor,) = of_kind(made("seen"), "PodMonitor")
    assert all(set(endpoint) == {"port", "path", "interval"} for endpoint in monitor["spec"]["podMetricsEndpoints"])


def test_commands_exist() -> None:
    for container in (container for name in COMBINATIONS for container in containers(made(name))):
        command = container["args"]
        if command[0] == "riffle":
            assert command[1] in COMMANDS
        else:
            assert command in (
                ["python", "-m", agents.worker.__name__],
                ["python", "-m", agents.worker.__name__, "--role", RANKING],
            )
    assert RANKING in ROLES


def test_the_network_is_closed_but_for_what_is_named() -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind(made("plain"), "NetworkPolicy")}
    deny = policies["riffle-deny"]
    assert (deny["policyTypes"], deny.keys() & {"ingress", "egress"}) == (["Ingress", "Egress"], set())
    for name in ("plain", "encoder", "train", "gpu"):
        assert all(
            deny["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items() for pod in pods(made(name)).values()
        )
    (peers,) = policies["riffle-worker"]["ingress"]
    assert [list(peer) for peer in peers["from"]] == [["podSelector"]], "without clients only workers ask workers"
    assert not [rule for policy in policies.values() for rule in policy.get("egress", ()) if not rule.get("ports")]


def test_names_are_looked_up_wherever_the_cluster_answers_them() -> None:
    """On the node (node-local DNS) or outside of the cluster's pods (EKS Auto Mode), which no selector of pods matches."""
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind(made("plain"), "NetworkPolicy")}
    ports = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
    assert [rule for rule in policies["riffle-backends"]["egress"] if rule["ports"] == ports] == [{"ports": ports}]


def test_scaling_follows_the_lag_of_the_groups_of_the_code() -> None:
    settings = Settings()
    scaled = {one["metadata"]["name"]: one["spec"] for one in of_kind(made("gpu"), "ScaledObject")}
    lags = {name: spec["triggers"][0]["metadata"] for name, spec in scaled.items()}
    assert (lags["riffle-worker"]["consumerGroup"], lags["riffle-worker"]["topic"]) == (
        settings.app_id,
        settings.topic("interactions"),
    )
    assert (lags["riffle-ranking"]["consumerGroup"], lags["riffle-ranking"]["topic"]) == (
        group_of(settings),
        settings.topic("rank"),
    )
    assert {"interactions", "rank"} <= set(TOPICS)
    assert all(spec["maxReplicaCount"] <= settings.partitions for spec in scaled.values())
    for name in ("gpu", "ranking"):
        assert not [one for one in made(name) if one["kind"] in {"StatefulSet", "Deployment"} and "replicas" in one["spec"]]


def test_ranking_keeps_nothing_and_takes_gpus_only_when_asked() -> None:
    for name, gpus in (("ranking", None), ("gpu", 1)):
        pod = pods(made(name))["Deployment/riffle-ranking"]["spec"]
        assert all("emptyDir" in volume for volume in pod["volumes"])
        assert pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") == gpus
    assert of_kind(made("ranking"), "ConfigMap")[0]["data"]["RIFFLE_RANKING"] == "remote"
    assert "RIFFLE_RANKING" not in of_kind(made("plain"), "ConfigMap")[0]["data"]


def test_retraining_is_weekly_in_full_hourly_from_the_champion_and_a_laptops_crontab_is_its_schedule() -> None:
    jobs = {one["metadata"]["name"]: one["spec"] for one in of_kind(made("train"), "CronJob")}
    in_a_cluster = {}
    for spec in jobs.values():
        assert spec["concurrencyPolicy"] == "Forbid"
        (container,) = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        in_a_cluster[spec["schedule"]] = container["args"][: container["args"].index("--upload")]
    # never on the same day, because an update that is promoted meanwhile causes the full training to be refused
    assert jobs["riffle-train-incremental"]["schedule"].split()[1:] == ["*", "*", "*", "1-6"]
    assert jobs["riffle-train-full"]["schedule"].split()[2:] == ["*", "*", "0"]
    lines = re.findall(r"^((?:\S+ +){5})cd .* \.venv/bin/(riffle train .*) >> ", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {" ".join(schedule.split()): command.split() for schedule, command in lines} == in_a_cluster


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"settings": {"RIFFLE_REDIS_URL": None}}, "RIFFLE_REDIS_URL is missing"),
        ({"worker": {"replicas": 5}}, "5 workers are more than the 4 partitions"),
        ({"autoscaling": {"worker": {"kind": "keda", "maxReplicas": 9}}}, "9 workers are more than the 4 partitions"),
        ({"autoscaling": {"worker": {"minReplicas": 4, "maxReplicas": 3}}}, "minReplicas is more than maxReplicas"),
        ({"ranking": {"enabled": True, "replicas": 8}}, "8 ranking processes are more"),
        ({"worker": {"terminationGracePeriodSeconds": 25}}, "must be more than RIFFLE_STOP_TIMEOUT_S"),
        ({"train": {"enabled": True, "upload": "s3://b/r"}}, "needs settings.RIFFLE_ARCHIVE s3://"),
        ({"settings": S3, "train": {"enabled": True}}, "needs train.upload"),
        ({"worker": {"replica": 2}}, "additional properties 'replica' not allowed"),
        ({"settings": {"RIFFLE_KAFKA_PASSWORD": "x"}}, "RIFFLE_KAFKA_PASSWORD"),
        ({"settings": {"RIFFLE_REDIS_URL": "redis://:secret@redis:6379"}}, "RIFFLE_REDIS_URL"),
        ({"settings": {"RIFFLE_PARTITIONS": 4}}, "RIFFLE_PARTITIONS"),
        ({"image": {"tag": "latest"}}, "/image/tag"),
        ({"httpRoute": {"enabled": True}}, "parentRefs"),
        ({"worker": {"image": {"digest": "sha256:1"}}}, "digest"),
        ({"networkPolicy": {"enabled": False}}, "http.tokens is missing"),
        ({"http": {"tokens": "tokens"}, "secrets": {"files": "f"}}, "http.tokens needs http.token"),
        ({"http": {"certificate": "tls.crt"}}, "http.certificate names a key of secrets.files"),
        ({"http": {**TLS, "serverName": ""}, **FILES}, "http.certificate needs http.serverName"),
        ({"http": TLS, **FILES, **ROUTED}, "needs a BackendTLSPolicy"),
        ({"settings": {"RIFFLE_HTTP_TOKENS_FILE": "/etc/riffle/secrets/tokens"}}, "set http.tokens to the key of that file"),
        ({"settings": {"RIFFLE_HTTP_TOKEN": "x"}}, "RIFFLE_HTTP_TOKEN"),
        ({"settings": {"RIFFLE_KAFKA_CLIENT_SECRET": "x"}}, "RIFFLE_KAFKA_CLIENT_SECRET"),
    ],
)
def test_values_that_cannot_work_are_refused_with_the_reason(values: Mapping[str, Any], why: str) -> None:
    assert why in refused(values)


def test_a_route_to_workers_with_a_certificate_is_made_once_the_gateways_side_of_tls_is() -> None:
    objects = rendered({"http": TLS, **FILES, "httpRoute": {**ROUTED["httpRoute"], "backendTLSPolicy": True}})
    assert len(of_kind(objects, "HTTPRoute")) == 1


def test_a_release_of_another_name_keeps_its_names_apart() -> None:
    ran = template(merged(PLAIN, COMBINATIONS["seen"]), "second")
    names = set(re.findall(r"^  name: (\S+)$", ran.stdout, re.MULTILINE))
    assert "second-riffle-worker" in names
    assert all(name.startswith("second-riffle") for name in names)


def test_the_schema_describes_every_value() -> None:
    """Each object of the chart's own is closed, so that a misspelt value is refused."""
    schema = json.loads((CHART / "values.schema.json").read_text())

    def closed(part: dict[str, Any], at: str) -> None:
        if "properties" in part:
            assert "additionalProperties" in part, at
            for key, below in part["properties"].items():
                closed(below, f"{at}.{key}")

    closed(schema, "")
    never = schema["properties"]["settings"]["propertyNames"]["not"]["enum"]
    assert never == [f"RIFFLE_{name.upper()}" for name in SECRETS]
