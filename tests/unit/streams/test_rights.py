"""Rights follow from the topics' declarations: each role's are what its code reads and writes, and both forms say the same."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from agents.cli.topics import topics
from models.archive.files import SCHEMAS
from schemas.errors import ConfigError
from schemas.settings import Settings
from streams.kafka.client import REPLIES
from streams.kafka.rights import ACTIONS, ROLES, Right, commands_of, policy_of, rights_of
from streams.kafka.topics import CLIENT, RANKING, TOPICS, TRAIN, WORKER

CLUSTER = "arn:aws:kafka:eu-west-1:123456789012:cluster/shop/11112222-3333-4444-5555-666677778888-9"
TERRAFORM = Path(__file__).resolve().parents[3] / "deploy" / "terraform" / "modules" / "iam"
NAMES = st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True)


@given(st.sampled_from(ROLES), NAMES, NAMES)
def test_no_right_reaches_beyond_the_instances_names(role: str, prefix: str, app_id: str) -> None:
    settings = Settings(topic_prefix=f"{prefix}.", app_id=app_id)
    for right in rights_of(role, settings):
        assert right.name.startswith(settings.topic_prefix if right.kind == "topic" else (app_id, settings.topic_prefix))
        if right.prefixed:
            assert (right.kind, right.operation) in {
                ("topic", "Describe"),
                ("transactional-id", "Describe"),
                ("transactional-id", "Write"),
            }
    assert len(set(rights_of(role, settings))) == len(rights_of(role, settings))


def test_every_topic_is_read_and_written_by_whom_it_declares() -> None:
    settings = Settings()
    for role in ROLES:
        held = {(right.name, right.operation) for right in rights_of(role, settings)}
        for name, spec in TOPICS.items():
            assert ((settings.topic(name), "Read") in held) == (role in spec.readers)
            assert ((settings.topic(name), "Write") in held) == (role in spec.writers)


@pytest.mark.parametrize("role", ROLES)
def test_the_commands_give_exactly_the_rights(role: str) -> None:
    rights = rights_of(role, Settings())
    found = set()
    for command in commands_of(rights, "User:a b", "kafka:9092"):
        parts = shlex.split(command)
        assert parts[:6] == ["kafka-acls", "--bootstrap-server", "kafka:9092", "--add", "--allow-principal", "User:a b"]
        options = list(zip(parts[6::2], parts[7::2], strict=True))
        prefixed = ("--resource-pattern-type", "prefixed") in options
        ((kind, name),) = [(o.removeprefix("--"), v) for o, v in options if o not in {"--operation", "--resource-pattern-type"}]
        found |= {Right(kind, name, v, prefixed) for o, v in options if o == "--operation"}
    assert found == set(rights)


@pytest.mark.parametrize("role", ROLES)
def test_the_policy_of_iam_gives_exactly_the_rights(role: str) -> None:
    rights = rights_of(role, Settings())
    policy = policy_of(rights, CLUSTER)
    connect, *statements = policy["Statement"]
    assert connect["Resource"] == [CLUSTER]
    found = {(arn, action) for one in statements for arn in one["Resource"] for action in one["Action"]}
    at = "arn:aws:kafka:eu-west-1:123456789012"
    wanted = set()
    for right in rights:
        arn = f"{at}:{right.kind}/shop/11112222-3333-4444-5555-666677778888-9/{right.name}{'*' * right.prefixed}"
        wanted |= {(arn, f"kafka-cluster:{action}") for action in ACTIONS[right.kind, right.operation]}
    assert found == wanted
    with pytest.raises(ConfigError):
        policy_of(rights, "arn:aws:s3:::bucket")


def test_the_command_prints_both_forms_and_connects_to_nothing() -> None:
    def ran(*arguments: str) -> str:
        done = CliRunner().invoke(topics, ["acls", *arguments], env={"RIFFLE_BOOTSTRAP": "127.0.0.1:1"})
        assert done.exit_code == 0, done.output
        return done.output

    rights = rights_of(WORKER, Settings())
    assert ran("--role", "worker", "--principal", "User:r").splitlines() == commands_of(rights, "User:r", "127.0.0.1:1")
    assert json.loads(ran("--role", "worker", "--msk", CLUSTER)) == policy_of(rights, CLUSTER)
    assert len(json.loads(ran("--role", "worker", "--principal", "User:r", "--json"))) == len(rights)
    for wrong in ([], ["--role", "worker"], ["--role", "worker", "--principal", "u", "--msk", CLUSTER], ["--principal", "u"]):
        assert CliRunner().invoke(topics, ["acls", *wrong]).exit_code == 2


def test_a_worker_may_do_what_its_page_does() -> None:
    """Announce releases, and read dead letters and replay them to the topics of their records."""
    settings = Settings()
    held = {(right.name, right.operation) for right in rights_of(WORKER, settings)}
    for name, operation in (("models", "Read"), ("models", "Write"), ("dead-letters", "Read")):
        assert (settings.topic(name), operation) in held
    for name in {*SCHEMAS, "interactions", "requests", "covisits"}:  # whatever is archived or applied may become a letter
        assert (settings.topic(name), "Write") in held


def test_the_rights_of_terraform_are_these_and_a_few_more() -> None:
    """`rights.json` is read by Terraform. What it has beside `rights_of` is named here, with the reason."""
    more = {
        # the first worker creates the topics, and operators publish rules as a worker
        WORKER: {
            *(("topic", name, "Create") for name in TOPICS),
            ("topic", "rules", "Write"),
            ("group", "riffle.rank", "Describe"),
        },
        RANKING: set[tuple[str, str, str]](),
        CLIENT: set[tuple[str, str, str]](),
        TRAIN: set[tuple[str, str, str]](),
    }
    listed = json.loads((TERRAFORM / "rights.json").read_text())
    settings = Settings()
    kinds = {"create": "Create", "read": "Read", "write": "Write"}

    def filled(name: str) -> str:
        return name.replace("{app}", settings.app_id).replace("{prefix}", settings.topic_prefix)

    for role in ROLES:
        own = listed[role]
        found = {("topic", name, operation) for kind, operation in kinds.items() for name in own[kind]}
        replies = {"read": ("Read", "Create"), "write": ("Write",)}
        found |= {("topic", REPLIES, operation) for kind in own["replies"] for operation in replies[kind]}
        found |= {("group", filled(name), "Read") for name in own["groups"]}
        found |= {("group", filled(name), "Describe") for name in own["watched_groups"]}
        wanted = set()
        for right in rights_of(role, settings):
            if right.kind == "transactional-id":
                # narrower there: the ids of each changelog
                assert own["transactions"]
                assert all(filled(name).startswith(right.name) for name in own["transactions"])
            elif right.operation == "Describe":
                assert role == CLIENT or set(own["describe"]) == set(TOPICS), "every process but a client looks at all topics"
            else:
                wanted.add(
                    (
                        right.kind,
                        right.name.removeprefix(settings.topic_prefix) if right.kind == "topic" else right.name,
                        right.operation,
                    )
                )
        assert found - wanted == more[role], role
        assert wanted <= found, (role, wanted - found)
