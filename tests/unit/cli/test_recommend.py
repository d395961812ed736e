"""Slates of many users: each user has one, in order, whatever the worker refuses for now; the file is whole or absent."""

from __future__ import annotations

import asyncio
import errno
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from aiohttp import web
from click.testing import CliRunner
from fakes import FakeService
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import Served

from agents.cli import asking, slate_files, slate_lists
from agents.cli.recommend import recommend
from agents.cli.slate_files import COLUMNS, check_writable, slate_file
from agents.cli.slate_lists import Failed, SlateLists, all_users
from agents.web.protocol import Wanted, always
from agents.web.routes import build_app
from schemas.errors import BadRequest, ConfigError, DeadlineExceeded, NotReady, RiffleError
from schemas.records import Interaction, Item, Request, Slate
from schemas.settings import Settings


class Busy(FakeService):
    """Refuses each user's first requests: `late-N` and `away-N` for now N times, `bug-N` by 500 N times, `bad` always."""

    def __init__(self) -> None:
        super().__init__(catalogue={f"i{n}": Item(f"i{n}") for n in range(5)})
        self.asked: Counter[str] = Counter()

    async def recommend(self, request: Request, deadline_ms: int | None = None, wanted: Wanted = always) -> Slate:
        kind, _, times = request.user_id.partition("-")
        self.asked[request.user_id] += 1
        if kind == "bad":
            raise BadRequest("invalid_field", "never", "user_id")
        if times.isdecimal() and self.asked[request.user_id] <= int(times):
            if kind == "late":
                raise DeadlineExceeded("deadline_exceeded", "no time")
            if kind == "away":
                raise NotReady("not_ready", "being restored")
            if kind == "bug":
                raise RiffleError("internal", "a bug")
        return await super().recommend(request, deadline_ms, wanted)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for between two attempts."""
    monkeypatch.setattr(slate_lists, "FIRST_S", 0.0)


def served(service: Busy, work: Any, app: web.Application | None = None) -> Any:
    """Run `work`, given the address of a server."""

    async def scene() -> Any:
        async with Served(app or build_app(service), service.metrics) as server:
            return await work(f"http://{server.host}:{server.port}")

    return asyncio.run(scene())


def slates(service: Busy, users: list[str], *, size: int = 3, parallel: int = 2, **request: Any) -> list[Any]:
    async def work(url: str) -> list[Any]:
        lists = SlateLists(url, request, size=size, parallel=parallel)
        return [answer async for batch in lists.slates(users) for answer in batch]

    found: list[Any] = served(service, work)
    return found


kinds = st.sampled_from(["u", "late-1", "late-3", "away-2", "bug-1", f"bug-{slate_lists.TRIES}", "bad"])


@settings(max_examples=30)
@given(st.lists(kinds, max_size=14), st.integers(1, 5), st.integers(1, 3))
def test_each_user_has_an_answer_in_order_whatever_is_refused_for_now(given_: list[str], size: int, parallel: int) -> None:
    service, users = Busy(), [f"{kind}-{n}-x" if kind == "u" else kind for n, kind in enumerate(dict.fromkeys(given_))]
    found = slates(service, users, size=size, parallel=parallel, k=2)
    for user, answer in zip(users, found, strict=True):
        if user in {"bad", f"bug-{slate_lists.TRIES}"}:
            assert isinstance(answer, Failed)
            assert answer.user_id == user
        else:
            assert (answer["user_id"], len(answer["items"])) == (user, 2)
    refused = {user: int(user.partition("-")[2]) for user in users if not user.startswith(("u", "bad"))}
    tries = {user: min(n + 1, slate_lists.TRIES) if user.startswith("bug") else n + 1 for user, n in refused.items()}
    assert {user: service.asked[user] for user in tries} == tries, "who is answered is not asked for again"


def test_no_more_lists_are_in_flight_than_wanted() -> None:
    flying = most = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        asked = await request.json()
        await asyncio.sleep(0.01)
        flying -= 1
        return web.json_response({"answers": [{"user_id": one["user_id"], "items": []} for one in asked]})

    app = web.Application()
    app.router.add_post("/v1/recommend", answer)

    async def work(url: str) -> list[Any]:
        return [one async for batch in SlateLists(url, {}, size=2, parallel=3).slates(map(str, range(40))) for one in batch]

    assert [one["user_id"] for one in served(Busy(), work, app)] == [str(n) for n in range(40)]
    assert most == 3


@pytest.mark.parametrize(("status", "body"), [(503, {"error": {"code": "x", "message": "m"}}), (502, "<html>"), (500, None)])
def test_a_server_that_fails_for_a_while_is_asked_again(status: int, body: Any) -> None:
    calls = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        if calls < 4:
            return web.Response(text=body if isinstance(body, str) else json.dumps(body), status=status)
        return web.json_response({"answers": [{"user_id": one["user_id"], "items": []} for one in await request.json()]})

    app = web.Application()
    app.router.add_post("/v1/recommend", answer)

    async def work(url: str) -> list[Any]:
        return [one async for batch in SlateLists(url, {}, size=9).slates(["a", "b"]) for one in batch]

    assert [one["user_id"] for one in served(Busy(), work, app)] == ["a", "b"]
    assert calls == 4


async def test_a_worker_that_answers_nobody_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slate_lists, "MOST_S", 0.0)
    now = iter(range(0, 10**6, 30))
    lists = SlateLists("http://127.0.0.1:9", {}, clock=lambda: float(next(now)))
    with pytest.raises(NotReady) as found:
        await anext(lists.slates(["a", "b"]))
    assert found.value.code == "no_answer"


def test_a_list_that_the_worker_refuses_as_a_whole_ends_the_run() -> None:
    app = web.Application()

    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"error": {"code": "too_large", "message": "big"}}, status=413)

    app.router.add_post("/v1/recommend", refuse)

    async def work(url: str) -> None:
        await anext(SlateLists(url, {}).slates(["a"]))

    with pytest.raises(RiffleError) as found:
        served(Busy(), work, app)
    assert (found.value.code, found.value.message) == ("too_large", "big")


# ---- all users


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=3).filter(lambda text: text.isprintable()), max_size=9))
def test_all_users_are_read_page_by_page(users: list[str]) -> None:
    service = Busy()
    service.events = [Interaction(f"e{n}", user, "i", 5) for n, user in enumerate(users)]

    async def work(url: str) -> list[str]:
        def two(address: str, *more: Any, **named: Any) -> asking.Answer:
            return plain(address + "&limit=2", *more, **named)

        plain = asking.ask
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asking, "ask", two)
            return await asyncio.to_thread(lambda: list(all_users(url)))

    assert served(service, work) == sorted(set(users), key=str.encode)


@pytest.mark.parametrize(("failures", "code"), [(3, None), (10**6, "not_ready")])
def test_a_partition_that_is_restored_is_asked_for_again(
    failures: int, code: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = iter([asking.Answer(503, {"error": {"code": "not_ready", "message": "later"}})] * min(failures, 1_000))
    page = asking.Answer(200, {"users": ["a"], "partitions": 1, "next": None})
    monkeypatch.setattr(asking, "ask", lambda *_, **__: next(pages, page))
    monkeypatch.setattr(slate_lists, "FIRST_S", 1.0)
    slept: list[float] = []
    if code is None:
        assert list(all_users("http://h", slept.append)) == ["a"]
        assert slept == [1.0, 2.0, 4.0]
    else:
        with pytest.raises(NotReady) as found:
            list(all_users("http://h", slept.append))
        assert found.value.code == code
        assert sum(slept) >= slate_lists.PATIENCE_S


# ---- files


def slate(user: str, items: int, as_of: Any = None) -> dict[str, Any]:
    return {
        "request_id": f"r-{user}",
        "user_id": user,
        "items": [{"item_id": f"i{n}", "score": 1.0 / (n + 1), "sources": ["popular"]} for n in range(items)],
        "release": "r1",
        "arm": "default",
        "degraded": ["stale", "ranker"] if items == 1 else [],
        "as_of": as_of,
        "timings_ms": {},
    }


as_ofs = st.none() | st.just({"partition": 3, "offset": 2**40, "event_time": 1_700_000_000_000})
batches = st.lists(st.lists(st.builds(slate, st.text(max_size=3), st.integers(0, 4), as_ofs), max_size=3), max_size=5)


@settings(max_examples=60)
@given(batches, st.integers(1, 6))
def test_files_hold_every_slate_in_order(given_: list[list[dict[str, Any]]], in_memory: int) -> None:
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(slate_files, "ROWS_IN_MEMORY", in_memory)
        for suffix in slate_files.SUFFIXES:
            path = Path(root) / f"slates{suffix}"
            path.write_text("an earlier file")
            with slate_file(path) as add:
                for batch in given_:
                    add(batch)
                assert path.read_text() == "an earlier file", "until all is written"
        assert {path.name for path in Path(root).iterdir()} == {"slates.parquet", "slates.jsonl"}
        plain = [one for batch in given_ for one in batch]
        assert [json.loads(line) for line in (Path(root) / "slates.jsonl").read_bytes().splitlines()] == plain
        frame = pl.read_parquet(Path(root) / "slates.parquet")
    assert frame.schema == COLUMNS
    rows = [
        (
            *(one["user_id"], rank, item["item_id"], item["score"], one["request_id"], one["release"]),
            ",".join(one["degraded"]),
            *((one["as_of"] or {}).get(name) for name in ("partition", "offset", "event_time")),
        )
        for one in plain
        for rank, item in enumerate(one["items"], 1)
    ]
    assert frame.rows() == rows


def _interrupted_write(path: Path) -> None:
    with slate_file(path) as add:
        add([slate("u", 3)])
        raise KeyboardInterrupt


@pytest.mark.parametrize("suffix", slate_files.SUFFIXES)
def test_an_error_leaves_the_file_as_it_was(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"slates{suffix}"
    for before in (None, "an earlier file"):
        if before is not None:
            path.write_text(before)
        with pytest.raises(KeyboardInterrupt):
            _interrupted_write(path)
        assert (path.read_text() if path.exists() else None) == before
        assert [found for found in tmp_path.iterdir() if found != path] == []


# ---- the command


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "users.txt"
    path.write_text("u1\r\nlate-2\n\nu1\n" + "x" * 300 + "\nbad\nübel\n", encoding="utf-8-sig")
    return path


def ran(service: Busy, arguments: list[str], code: int) -> tuple[str, str]:
    async def work(url: str) -> Any:
        environment = Settings(home=Path("/nowhere"), web_port=1).environment()
        arguments_ = [*arguments, "--worker", url + "/"]
        return await asyncio.to_thread(
            lambda: CliRunner().invoke(recommend, arguments_, env=environment, catch_exceptions=False)
        )

    done = served(service, work)
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


def test_who_cannot_have_a_slate_is_reported_and_the_others_are_written(tmp_path: Path, page: Path) -> None:
    out = tmp_path / "slates.jsonl"
    said, error = ran(Busy(), ["--users", str(page), "--out", str(out), "-k", "3", "--json"], 1)
    facts = json.loads(said.splitlines()[-1])
    told = {name: facts[name] for name in ("users", "answered", "failed", "bad_rows", "repeated", "items", "sent_again")}
    assert told == {"users": 4, "answered": 3, "failed": 1, "bad_rows": 1, "repeated": 1, "items": 9, "sent_again": 2}
    assert facts["examples"] == [{"user_id": "bad", "code": "invalid_field", "message": "never"}]
    assert "users.txt line 5: user_id must have at most 256 bytes" in error
    assert "warning: users.txt line 4: user_id 'u1' was there before" in error
    slates_ = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["user_id"] for one in slates_] == ["u1", "late-2", "übel"]
    assert {len(one["items"]) for one in slates_} == {3}


def test_all_users_without_a_bad_one_end_with_0(tmp_path: Path) -> None:
    service = Busy()
    service.events = [Interaction(f"e{n}", user, "i1", 5) for n, user in enumerate(["b", "a", "late-1", "a"])]
    said, _ = ran(service, ["--users", "all", "--out", str(tmp_path / "slates.parquet"), "--category", "c"], 0)
    assert "users 3, answered 3" in said
    assert pl.read_parquet(tmp_path / "slates.parquet")["user_id"].unique(maintain_order=True).to_list() == ["a", "b", "late-1"]
    assert all(request.categories == ("c",) for request, _ in service.requests)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--users", "all", "--out", "slates.csv"], 2),
        (["--users", "all", "--out", "/no/such/folder/slates.jsonl"], 2),
        (["--users", "all", "--out", "slates.jsonl", "--k", "501"], 2),
        (["--out", "slates.jsonl"], 2),
    ],
)
def test_what_cannot_work_is_a_usage_error_before_anyone_is_asked(arguments: list[str], code: int) -> None:
    done = CliRunner().invoke(recommend, arguments, env=Settings(home=Path("/nowhere"), web_port=1).environment())
    assert done.exit_code == code, done.output


@pytest.mark.parametrize(
    ("users", "code"), [("all", "no_users"), ("gone.txt", "unreadable"), ("empty.txt", "empty"), ("other.csv", "no_column")]
)
def test_without_users_nothing_is_written(tmp_path: Path, users: str, code: str) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "other.csv").write_text("name\nann\n")
    given_ = users if users == "all" else str(tmp_path / users)
    out = tmp_path / "slates.parquet"
    with pytest.raises(RiffleError) as found:
        ran(Busy(), ["--users", given_, "--out", str(out)], 1)
    assert found.value.code == code
    assert not out.exists()


def test_a_file_that_cannot_be_written_is_said_before_anyone_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folder_that_is_read_only(**_: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    environment = Settings(home=tmp_path, web_port=1).environment()
    monkeypatch.setattr("agents.cli.recommend._worker", lambda _: pytest.fail("a worker was asked"))
    named_like_a_file = tmp_path / "slates.parquet"
    named_like_a_file.mkdir()
    for out, code, said in (
        (tmp_path, 2, "is a folder: name a file in it, such as"),
        (named_like_a_file, 1, "is a folder: name a file in it, such as"),
        (tmp_path / ("x" * 300 + ".jsonl"), 1, "File name too long"),
    ):
        done = CliRunner().invoke(recommend, ["--users", "all", "--out", str(out)], env=environment)
        assert (done.exit_code, isinstance(done.exception, SystemExit)) == (code, code == 2), done.output
        assert said in (done.output if code == 2 else str(done.exception))
    monkeypatch.setattr("agents.cli.slate_files.tempfile.mkdtemp", folder_that_is_read_only)
    with pytest.raises(ConfigError, match=r"no file can be created in .*: Permission denied"):
        check_writable(tmp_path / "a.jsonl")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_check_of_a_file_leaves_nothing_and_the_file_as_it_was(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"slates{suffix}"
    out.write_text("before")
    check_writable(out)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert out.read_text() == "before"


def test_a_worker_that_is_not_there_is_named(tmp_path: Path) -> None:
    environment = Settings(home=tmp_path, web_port=1).environment()
    arguments = ["--users", "all", "--out", str(tmp_path / "slates.parquet")]
    with pytest.raises(NotReady) as found:
        CliRunner().invoke(recommend, arguments, env=environment, catch_exceptions=False)
    assert found.value.code == "no_worker"
    assert "riffle up" in found.value.message
