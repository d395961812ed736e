"""The configuration of AWS: valid against the provider's schema, applied to a mocked AWS at each size, fit for chart and code.

No account is asked: what AWS itself would refuse is not found here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from chart import pods, template
from terraforming import DEPLOYED, EXAMPLE, ROOT, SIZES, TOOLS, Terraform, copied, resources, terraform

from schemas.settings import Settings
from streams.kafka.topics import TOPICS

pytestmark = pytest.mark.timeout(1_800)
EVERY = pytest.mark.parametrize("size", SIZES)
CUSTOM = {"NodePool"}
"Kinds of Karpenter, whose definitions are not here."


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    return terraform(tmp_path_factory.mktemp("provider"))


@pytest.fixture(scope="session")
def states(run: Terraform, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The state of each size."""
    folder = run.initialised(copied(tmp_path_factory.mktemp("states") / "terraform"))
    return {size: run.applied(folder, size) for size in SIZES}


def output(state: Mapping[str, Any], name: str) -> Any:
    return state["outputs"][name]["value"]


def policies(state: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Statements of the policies of the module iam, by component."""
    found = {}
    for one in resources(dict(state)):
        if one["address"].startswith("module.iam.") and one["type"] in ("aws_iam_role_policy", "aws_iam_policy"):
            name = one.get("index") or one["name"]
            found[name] = json.loads(one["values"]["policy"])["Statement"]
    return found


def allows(statements: list[dict[str, Any]], action: str, resource: str) -> bool:
    return any(
        one["Effect"] == "Allow" and action in one["Action"] and any(fnmatchcase(resource, arn) for arn in one["Resource"])
        for one in statements
    )


def test_files_are_formatted(run: Terraform) -> None:
    ran = run(DEPLOYED, "fmt", "-check", "-recursive", "-no-color")
    assert (ran.returncode, ran.stdout) == (0, "")


def test_all_is_valid_against_the_providers_schema(run: Terraform, tmp_path: Path) -> None:
    folder = run.initialised(copied(tmp_path / "terraform"))
    ran = run(folder, "validate", "-no-color")
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("path", "right", "wrong", "message"),
    [
        ("modules/msk/main.tf", "number_of_broker_nodes = 3\n", "", 'The argument "number_of_broker_nodes" is required'),
        ("modules/msk/main.tf", "in_cluster ", "inside_cluster ", 'An argument named "inside_cluster" is not expected'),
        ("modules/msk/main.tf", "storage_info {", "storage {", 'Blocks of type "storage" are not expected'),
        (
            "modules/eks/main.tf",
            '"aws_eks_addon" "metrics',
            '"aws_eks_plugin" "metrics',
            'resource type "aws_eks_plugin"',
        ),
        (
            "modules/cache/main.tf",
            "num_cache_clusters   = var.nodes",
            "num_cache_clusters = var.count_of",
            "Reference to undeclared",
        ),
        (
            "modules/iam/main.tf",
            "aws_iam_role.trainer.arn]",
            "aws_iam_role.trainer.uri]",
            'exported attribute named "uri"',
        ),
        (f"{EXAMPLE}/main.tf", "max_storage_gb         = 100\n", "", 'The argument "max_storage_gb" is required'),
        (f"{EXAMPLE}/main.tf", "kept_images         = 30", "kept_images = module.key", "number required"),
        (f"{EXAMPLE}/main.tf", "module.storage.arn", "module.storage.uri", 'does not have an attribute named "uri"'),
    ],
)
def test_a_wrong_name_or_type_is_found(run: Terraform, tmp_path: Path, path: str, right: str, wrong: str, message: str) -> None:
    changed = copied(tmp_path / "terraform")
    text = (changed / path).read_text()
    assert right in text
    (changed / path).write_text(text.replace(right, wrong, 1))
    run(changed / EXAMPLE, "init", "-backend=false", "-no-color")
    ran = run(changed / EXAMPLE, "validate", "-no-color")
    assert ran.returncode != 0
    assert message in re.sub(r"\s+", " ", ran.stdout + ran.stderr)


@EVERY
def test_the_values_are_those_that_the_unit_tests_render(states: dict[str, dict[str, Any]], size: str) -> None:
    """They are kept, so that `make test` holds them against the chart without terraform. UPDATE=1 writes them anew."""
    kept = ROOT / "tests" / "aws" / f"values-{size}.yaml"
    if os.environ.get("UPDATE"):
        kept.write_text(output(states[size], "values"))
    assert output(states[size], "values") == kept.read_text()


@EVERY
def test_each_account_of_the_chart_gets_its_role_and_each_pool_exists(states: dict[str, dict[str, Any]], size: str) -> None:
    made = template(yaml.safe_load(output(states[size], "values")))
    assert made.returncode == 0, made.stderr
    rendered = [one for one in yaml.safe_load_all(made.stdout) if one]
    accounts = {one["metadata"]["name"] for one in rendered if one["kind"] == "ServiceAccount"}
    identities = {
        one["values"]["service_account"]
        for one in resources(states[size])
        if one["type"] == "aws_eks_pod_identity_association" and one["values"]["namespace"] == "riffle"
    }
    assert accounts <= identities == {f"riffle-{name}" for name in ("worker", "ranking", "encoder", "train")}
    manifests = [one for one in yaml.safe_load_all(output(states[size], "manifests")) if one]
    pools = {one["metadata"]["name"]: one for one in manifests if one["kind"] == "NodePool"}
    for name, pod in pods(rendered).items():
        pool = pools[pod["spec"]["nodeSelector"]["karpenter.sh/nodepool"]]
        tolerated = {(one["key"], one["effect"]) for one in pod["spec"].get("tolerations", ())}
        assert {(one["key"], one["effect"]) for one in pool["spec"]["template"]["spec"].get("taints", ())} <= tolerated, name
    classes = {one["metadata"]["name"] for one in manifests if one["kind"] == "StorageClass"}
    claims = [one["spec"] for one in rendered if one["kind"] == "PersistentVolumeClaim"]
    claims += [claim["spec"] for one in rendered for claim in one.get("spec", {}).get("volumeClaimTemplates", ())]
    assert claims
    assert {claim["storageClassName"] for claim in claims} <= classes


@EVERY
def test_the_manifests_are_valid(states: dict[str, dict[str, Any]], size: str) -> None:
    manifests = [one for one in yaml.safe_load_all(output(states[size], "manifests")) if one]
    assert {one["kind"] for one in manifests} >= CUSTOM
    for one in manifests:
        if one["kind"] not in CUSTOM:
            kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
    traced = "RIFFLE_TRACES" in yaml.safe_load(output(states[size], "values"))["settings"]
    assert traced == any(one["kind"] == "Deployment" for one in manifests)


@EVERY
def test_values_are_settings_that_riffle_accepts(
    states: dict[str, dict[str, Any]], size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in yaml.safe_load(output(states[size], "values"))["settings"].items():
        monkeypatch.setenv(name, value)
    settings = Settings.from_env()
    assert settings.kafka.msk_region == "eu-central-1"
    assert settings.replication == 3


def test_policies_name_the_topics_of_the_code(states: dict[str, dict[str, Any]]) -> None:
    """With the prefix, in this cluster, and nothing that stands for more than one topic, but replies."""
    start = "arn:aws:kafka:eu-central-1:111122223333:topic/shop-riffle/12345678-abcd/"
    made = policies(states["small"])
    assert set(made) == {"worker", "ranking", "encoder", "train", "client", "trainer", "launcher"}
    named = {arn for statements in made.values() for one in statements for arn in one["Resource"] if ":topic/" in arn}
    assert named == {start + f"riffle.{name}" for name in TOPICS} | {start + "riffle.replies*"}


@pytest.mark.parametrize(
    ("component", "action", "resource", "allowed"),
    [
        ("worker", "kafka-cluster:WriteData", "topic/riffle.users-changelog", True),
        ("worker", "kafka-cluster:AlterTransactionalId", "transactional-id/riffle-riffle.users-changelog-7", True),
        ("worker", "kafka-cluster:AlterGroup", "group/riffle-archive", True),
        ("worker", "kafka-cluster:WriteData", "topic/riffle.item-vectors", False),
        ("worker", "kafka-cluster:DeleteTopic", "topic/riffle.items", False),
        ("ranking", "kafka-cluster:ReadData", "topic/riffle.rank", True),
        ("ranking", "kafka-cluster:WriteData", "topic/riffle.replies-shop", True),
        ("ranking", "kafka-cluster:ReadData", "topic/riffle.interactions", False),
        ("encoder", "kafka-cluster:AlterTransactionalId", "transactional-id/riffle-encoder-riffle.items-0", True),
        ("encoder", "kafka-cluster:WriteData", "topic/riffle.items", False),
        ("train", "kafka-cluster:WriteData", "topic/riffle.models", True),
        ("train", "kafka-cluster:ReadData", "topic/riffle.interactions", False),
        ("client", "kafka-cluster:WriteData", "topic/riffle.requests", True),
        ("client", "kafka-cluster:WriteData", "topic/riffle.models", False),
    ],
)
def test_a_component_has_its_rights_in_kafka_and_no_others(
    states: dict[str, dict[str, Any]], component: str, action: str, resource: str, allowed: bool
) -> None:
    kind, name = resource.split("/")
    arn = f"arn:aws:kafka:eu-central-1:111122223333:{kind}/shop-riffle/12345678-abcd/{name}"
    assert allows(policies(states["small"])[component], action, arn) is allowed


@pytest.mark.parametrize(
    ("component", "action", "key", "allowed"),
    [
        ("worker", "s3:PutObject", "archive/interactions/x.parquet", True),
        ("worker", "s3:GetObject", "releases/r1/manifest.json", True),
        ("worker", "s3:PutObject", "releases/r1/manifest.json", False),
        ("ranking", "s3:GetObject", "releases/r1/manifest.json", True),
        ("ranking", "s3:GetObject", "archive/interactions/x.parquet", False),
        ("encoder", "s3:GetObject", "archive/interactions/x.parquet", False),
        ("train", "s3:GetObject", "archive/interactions/x.parquet", True),
        ("train", "s3:PutObject", "archive/interactions/x.parquet", False),
        ("train", "s3:PutObject", "releases/r1/manifest.json", True),
        ("trainer", "s3:PutObject", "training/r1/model.tar.gz", True),
        ("trainer", "s3:PutObject", "releases/r1/manifest.json", False),
    ],
)
def test_a_component_has_its_rights_in_s3_and_no_others(
    states: dict[str, dict[str, Any]], component: str, action: str, key: str, allowed: bool
) -> None:
    assert allows(policies(states["small"])[component], action, f"arn:aws:s3:::shop-riffle/{key}") is allowed


@EVERY
def test_the_state_holds_no_secret(states: dict[str, dict[str, Any]], size: str) -> None:
    made = {one["type"]: one["values"] for one in resources(states[size])}
    assert made["aws_elasticache_user"]["authentication_mode"][0]["type"] == "iam"
    if size != "small":
        assert made["aws_db_instance"]["manage_master_user_password"] is True
    assert not {"aws_secretsmanager_secret_version", "aws_iam_access_key", "random_password"} & set(made)


@EVERY
def test_what_holds_data_is_protected_and_encrypted(states: dict[str, dict[str, Any]], size: str) -> None:
    key = "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-0000-0000-000000000000"
    for one in resources(states[size]):
        values = one["values"]
        if one["type"] == "aws_msk_cluster":
            assert values["encryption_info"][0]["encryption_at_rest_kms_key_arn"] == key
            assert values["encryption_info"][0]["encryption_in_transit"] == [{"client_broker": "TLS", "in_cluster": True}]
        if one["type"] == "aws_elasticache_replication_group":
            assert (values["kms_key_id"], values["transit_encryption_mode"]) == (key, "required")
        if one["type"] == "aws_s3_bucket":
            assert values["force_destroy"] is False
        if one["type"] in ("aws_eks_cluster", "aws_db_instance"):
            assert values["deletion_protection"] is True


def test_brokers_take_what_clients_send_and_create_no_topic(states: dict[str, dict[str, Any]]) -> None:
    from streams.kafka import connect

    (text,) = (
        one["values"]["server_properties"] for one in resources(states["small"]) if one["type"] == "aws_msk_configuration"
    )
    properties = dict(line.split("=") for line in text.splitlines())
    assert properties["auto.create.topics.enable"] == "false"
    assert int(properties["message.max.bytes"]) >= connect.MAX_REQUEST_BYTES
    assert int(properties["transaction.max.timeout.ms"]) >= int(connect.TABLE_WRITES["transaction_timeout_ms"])


def test_checkov_finds_nothing(tmp_path: Path) -> None:
    checkov = TOOLS / "bin" / "checkov"
    if not checkov.exists():
        pytest.skip("checkov is not installed: make aws")
    command = [str(checkov), "-d", str(DEPLOYED), "--config-file", str(DEPLOYED / ".checkov.yaml"), "-o", "json"]
    command += ["--var-file", str(DEPLOYED / EXAMPLE / "medium.tfvars")]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    found = json.loads(ran.stdout)
    assert found["summary"]["passed"] > 100
    assert [(one["check_id"], one["resource"]) for one in found["results"]["failed_checks"]] == []
