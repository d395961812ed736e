"""Requests of commands to a worker: without proxies or redirects, limited in time and size."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agents import processes, supervisor
from agents.cli import doctor, operate, starting, states
from agents.cli.asking import ask
from agents.cli.tables import tables
from schemas.errors import ConfigError, NotReady
from schemas.settings import Settings
from streams.state.digests import digest

Handle = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def server(handle: Handle) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            handle(self)

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{made.server_address[1]}"
        finally:
            made.shutdown()
            thread.join()


def answering(body: object, status: int = 200, **headers: str) -> Handle:
    def handle(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    return handle


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with server(answering({"proxy": True}, 502)) as proxy, server(answering({"ready": True})) as worker:
        monkeypatch.setenv(name, proxy)
        assert ask(f"{worker}/readyz", 5.0).body == {"ready": True}


def test_an_answer_has_its_status_and_any_is_read() -> None:
    with server(answering({"ready": False}, 503)) as worker:
        answer = ask(worker, 5.0)
    assert (answer.status, answer.body) == (503, {"ready": False})


def test_a_redirect_is_not_followed() -> None:
    asked: list[str] = []

    def elsewhere(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        answering({}, 302, Location="/elsewhere")(request)

    with server(elsewhere) as worker:
        assert ask(f"{worker}/a", 5.0).status == 302
    assert asked == ["/a"]


def test_an_answer_is_bounded() -> None:
    with server(answering(b"[" + b"1," * 100_000)) as worker, pytest.raises(NotReady, match="exceeds 1000 bytes"):
        ask(worker, 5.0, 1000)


def test_an_answer_that_drips_is_given_up() -> None:
    done = threading.Event()

    def drip(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while not done.wait(0.01):
            try:
                request.wfile.write(b" ")
            except OSError:
                return

    with server(drip) as worker:
        with pytest.raises(NotReady, match=r"or 0\.3 s"):
            ask(worker, 0.3)
        done.set()


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff", b"[" * 100_000, b'{"a":'])
def test_something_else_than_json_is_said(body: bytes) -> None:
    with server(answering(body)) as worker, pytest.raises(NotReady, match="does not answer with JSON"):
        ask(worker, 5.0)


def test_what_is_no_http_is_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(b"-ERR unknown command\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(NotReady, match="does not answer"):
            ask(f"http://127.0.0.1:{listening.getsockname()[1]}", 5.0)
        thread.join()


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://h/x", "h:1", "", "http://h:x", "http://[", "http://h/\n", "http://:p@"]
)
def test_another_url_is_refused_or_no_answer(url: str) -> None:
    with pytest.raises((ConfigError, NotReady)) as refused:
        ask(url, 1.0)
    assert "/etc" not in refused.value.message or "not an http" in refused.value.message


def test_a_login_is_sent_and_never_shown() -> None:
    seen: list[str | None] = []

    def handle(request: BaseHTTPRequestHandler) -> None:
        seen.append(request.headers["Authorization"])
        answering({"tables": [{"table": "users", "partition": 0, "role": "owner", "position": 1}]})(request)

    with server(handle) as worker:
        url = worker.replace("http://", "http://ann:p%40ss@")
        shown = CliRunner().invoke(tables, ["--worker", url, "--json"], catch_exceptions=False).output
    assert seen == ["Basic " + base64.b64encode(b"ann:p@ss").decode()]
    assert "p%40ss" not in shown
    with pytest.raises(NotReady) as refused:
        ask(url, 1.0)
    assert "p%40ss" not in refused.value.message


OWNED = {"table": "users", "partition": 0, "role": "owner", "position": 9, "rows": 0, "hash": digest([]).hash}
RESTORING = {"table": "covisits", "partition": 1, "role": "restoring", "position": -1}


@pytest.mark.parametrize(
    ("found", "verdicts", "said", "code"),
    [
        ([OWNED], ["agrees"], "", 0),
        ([{**OWNED, "position": 1}], ["behind"], "", 0),
        ([{**OWNED, "hash": "other"}], ["DIFFERS"], "", 1),
        ([OWNED, RESTORING], ["agrees", "not compared"], "not compared: covisits-1: being restored", 1),
        ([], [], "not compared: no partition is assigned yet", 1),
    ],
)
def test_partitions_that_cannot_be_compared_are_named_and_no_success(
    monkeypatch: pytest.MonkeyPatch, found: list[dict[str, Any]], verdicts: list[str], said: str, code: int
) -> None:
    async def changelogs(_: Settings) -> dict[tuple[str, int], Any]:
        return {("users", 0): (9, digest([])), ("covisits", 1): (3, digest([]))}

    monkeypatch.setattr("agents.cli.tables.changelog_digests", changelogs)
    with server(answering({"tables": found})) as worker:
        done = CliRunner().invoke(tables, ["--verify", "--worker", worker, "--json"], catch_exceptions=False)
        assert CliRunner().invoke(tables, ["--worker", worker], catch_exceptions=False).exit_code == 0, "nothing was asked"
    assert [facts["verdict"] for facts in json.loads(done.stdout)["tables"]] == verdicts
    assert said in done.stderr
    assert bool(said) == bool(done.stderr)
    assert done.exit_code == code


def test_what_answers_for_another_home_is_not_taken_for_this_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"ready": True, "release": "none", "reasons": {}, "refused": {}, "warnings": {"archive": "stands still"}}
    with server(answering(body)) as web:
        settings = Settings(home=tmp_path, web_port=int(web.rpartition(":")[2]))
        found = states.readiness(settings)
        assert (found["ready"], found["release"]) == (False, None)
        assert "another program" in found["reasons"]["web"]
        processes.worker_daemon(settings).record(1, settings.web)  # a process that listens nowhere
        assert states.readiness(settings)["ready"] is False
        # this process is the one that listens
        processes.worker_daemon(settings).record(os.getpid(), settings.web)
        assert states.readiness(settings) == body
        monkeypatch.setattr(operate, "kafka_answers", lambda _: True)
        shown = CliRunner().invoke(operate.status, env=settings.resolved().environment(), catch_exceptions=False).output
        assert "warning: archive" in shown
        assert "stands still" in shown
        monkeypatch.setattr(operate, "kafka_answers", lambda _: False)
        found = json.loads(CliRunner().invoke(operate.status, ["--json"], env=settings.resolved().environment()).output)
        assert found["ready"] is False, "Kafka may be dead for longer than the worker knows"
        assert "kafka" in found["reasons"]


@contextmanager
def worker_with(settings: Settings, web: str) -> Iterator[None]:
    """Run a process that has these settings and counts as the worker at `web`."""
    daemon = processes.worker_daemon(settings)
    environment = {**os.environ, **settings.environment(), "RIFFLE_ODD": "1"}
    with subprocess.Popen([sys.executable, "-c", "input()"], env=environment, stdin=subprocess.PIPE) as process:
        daemon.record(process.pid, web)
        try:
            yield
        finally:
            process.kill()


def test_a_worker_with_other_settings_is_named_by_its_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"ready": False, "release": "none", "reasons": {}, "refused": {}, "warnings": {}}
    monkeypatch.setattr(states, "listens", lambda *_: True)
    monkeypatch.setattr(operate, "kafka_answers", lambda _: True)
    with server(answering(body)) as web:
        same = Settings(home=tmp_path, web_port=int(web.rpartition(":")[2]), redis_url="redis://:s3cret@h").resolved()
        other = replace(same, redis_url="redis://h", partitions=9, encoder="off")
        said = "the worker runs with other settings (RIFFLE_PARTITIONS, RIFFLE_REDIS_URL): `riffle down`, then `riffle up`"
        assert states.other_settings(other) == [], "none runs"
        with worker_with(same, web):
            starting._require_same_settings(same)
            starting._require_same_settings(replace(same, encoder="off"))  # the worker does not read it
            with pytest.raises(ConfigError) as refused:
                starting._require_same_settings(other)
            assert refused.value.message == said
            (line,) = [check.line() for check in doctor._workers(other) if check.warning]
            assert line == f"WARN settings: {said}"
            assert not [check for check in doctor._workers(same) if check.warning]
            for settings, told in ((other, True), (same, False)):
                plain = CliRunner().invoke(operate.status, env=settings.environment(), catch_exceptions=False)
                assert (said in plain.stdout) == told
                as_json = CliRunner().invoke(operate.status, ["--json"], env=settings.environment(), catch_exceptions=False)
                assert as_json.stderr == f"warning: {said}\n" * told
                assert json.loads(as_json.stdout)["warnings"] == {}
                assert "s3cret" not in plain.output + as_json.output
            moved = replace(other, web_port=1)
            with pytest.raises(ConfigError, match="RIFFLE_WEB_PORT is now"):
                starting._require_same_settings(moved)
            # one that ends again and again is mended by other settings, whether or not it runs just now
            supervisor.state_file(same).write_text(json.dumps({"worker": {"in_row": starting.TRIES}}))
            starting._require_same_settings(moved)
            monkeypatch.setattr(states, "listens", lambda *_: False)
            supervisor.state_file(same).write_text(json.dumps({"worker": {"in_row": 1}}))
            starting._require_same_settings(moved)
            supervisor.state_file(same).unlink()
            starting._require_same_settings(other)  # it is starting: asked again when it answers
            with pytest.raises(ConfigError, match="RIFFLE_WEB_PORT is now"):
                starting._require_same_settings(moved)
