"""A pid file never leads to the wrong process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from agents.cli.starting import start_stack
from schemas.errors import ConfigError, NotReady
from schemas.settings import Settings
from streams.embedded import process
from streams.embedded.process import Daemon, exit_status, listens, port_is_free, require_free_ports, uninterrupted, wait_until

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def daemon(folder: Path) -> Daemon:
    return Daemon("sleeper", folder / "run" / "s.pid", folder / "logs" / "s.log")


def test_start_stop_and_start_again(tmp_path: Path) -> None:
    made = daemon(tmp_path)
    assert made.pid() is None
    pid = made.start(SLEEP, dict(os.environ), tmp_path)
    assert made.pid() == pid
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: made.pid() is None, 5)
    again = made.start(SLEEP, dict(os.environ), tmp_path)
    assert again != pid
    assert made.stop()
    assert made.pid() is None
    assert not made.stop()


def test_a_recycled_pid_is_never_touched(tmp_path: Path) -> None:
    made = daemon(tmp_path)
    made.record(os.getpid())
    stored = json.loads(made.pid_file.read_text())
    made.pid_file.write_text(json.dumps({"pid": stored["pid"], "started": stored["started"] - 1}))
    assert made.pid() is None
    assert not made.stop()


@pytest.mark.parametrize("text", ["", "12", "{}", '{"pid": "x", "started": 1}', "null"])
def test_a_broken_pid_file_means_not_running(tmp_path: Path, text: str) -> None:
    made = daemon(tmp_path)
    made.pid_file.parent.mkdir(parents=True)
    made.pid_file.write_text(text)
    assert made.pid() is None


def test_a_process_that_ends_early_shows_its_log(tmp_path: Path) -> None:
    made = daemon(tmp_path)
    made.start([sys.executable, "-c", "print('the reason')"], dict(os.environ), tmp_path)
    with pytest.raises(NotReady, match="the reason"):
        made.await_ready(lambda: False, 10)


@given(st.lists(st.booleans(), max_size=4))
@settings(deadline=None, max_examples=20)
def test_every_taken_port_is_named_with_its_variable_and_no_free_one_is(taken: list[bool]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "PORT_S", 0.0)
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in taken]
        ports = {f"RIFFLE_{n}_PORT": int(listener.getsockname()[1]) for n, listener in enumerate(listeners)}
        for listener, stays in zip(listeners, taken, strict=True):
            if not stays:
                listener.close()
        try:
            if not any(taken):
                require_free_ports(ports)
                return
            with pytest.raises(ConfigError) as refused:
                require_free_ports(ports)
            for (variable, port), stays in zip(ports.items(), taken, strict=True):
                named = {variable, str(port)} & set(re.findall(r"\w+", refused.value.message))
                assert named == ({variable, str(port)} if stays else set())
        finally:
            for listener in listeners:
                listener.close()


def test_starting_the_stack_names_all_taken_ports_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PORT_S", 0.0)
    with contextlib.ExitStack() as held:
        listeners = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
        kafka, controller, redis, web = (int(listener.getsockname()[1]) for listener in listeners)
        made = Settings(home=tmp_path, kafka_port=kafka, controller_port=controller, redis_port=redis, web_port=web).resolved()
        with pytest.raises(ConfigError) as refused:
            start_stack(made, Console(file=io.StringIO()))
    for name in ("KAFKA", "CONTROLLER", "REDIS", "WEB"):
        assert f"RIFFLE_{name}_PORT" in refused.value.message
    assert not list(made.run_dir.glob("*.pid")), "nothing was started"


def test_a_port_that_is_given_back_in_a_moment_is_waited_for() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    giving = threading.Timer(0.3, taken.close)
    giving.start()
    assert not port_is_free(port)
    require_free_ports({"RIFFLE_X_PORT": port})
    giving.join()


def test_settings_survive_the_environment(tmp_path: Path) -> None:
    made = Settings(home=tmp_path, kafka_port=1, commit_interval_s=0.25).resolved()
    assert Settings.from_env(made.environment()) == made


@pytest.mark.parametrize(("name", "value"), [("PARTITIONS", "x"), ("PARTITIONS", "0"), ("COMMIT_INTERVAL_S", "0")])
def test_bad_settings_are_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigError):
        Settings.from_env({f"RIFFLE_{name}": value})


def test_only_the_process_that_listens_is_said_to_listen(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as bound:
        port = listening.getsockname()[1]
        bound.bind(("127.0.0.1", 0))
        made = daemon(tmp_path)
        made.start(SLEEP, dict(os.environ), tmp_path)
        try:
            assert listens(os.getpid(), port)
            assert not made.listens(port), "another's answer at the port would be taken for its own"
            assert not listens(os.getpid(), bound.getsockname()[1]), "a bound socket does not listen"
            with pytest.raises(NotReady, match="did not become ready"):
                made.await_ready(lambda: made.listens(port), 0.2)
        finally:
            made.stop()
    assert not made.listens(port)
    with pytest.raises(NotReady, match="ended"):
        made.await_ready(lambda: True, 0.2)


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)])
def test_how_a_child_ended_is_known_once(tmp_path: Path, code: str, status: int) -> None:
    made = daemon(tmp_path)
    pid = made.start([sys.executable, "-c", code], dict(os.environ), tmp_path)
    assert made.last_pid() == pid
    assert exit_status(pid, 10) == status
    assert exit_status(pid) is None
    assert exit_status(1) is None
    assert exit_status(0) is None


def test_a_signal_waits_until_a_process_and_its_pid_file_are_there(tmp_path: Path) -> None:
    """Between the two it would leave a process without a pid file."""

    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    def interrupted_in_the_middle(reached: list[int]) -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            reached.append(1)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        reached: list[int] = []
        with pytest.raises(Interrupted):
            interrupted_in_the_middle(reached)
        assert reached == [1]
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    threads = [threading.Thread(target=lambda: reached.extend([2] if uninterrupted().__enter__() is None else []))]
    threads[0].start()
    threads[0].join()
    assert reached == [1, 2]


def test_the_end_of_a_long_log_is_shown_without_logins(tmp_path: Path) -> None:
    made = daemon(tmp_path)
    made.log_file.parent.mkdir()
    made.log_file.write_bytes(b"\xff" * 200_000 + b"\nfirst\nredis://:hidden@h failed\n")
    assert made.tail(2).splitlines() == ["first", "redis://***@h failed"]


@pytest.mark.parametrize(
    ("there", "wanted", "said"),
    [
        (
            "http://127.0.0.1:6066",
            "http://127.0.0.1:7077",
            "PORT is now 7077: `riffle down`, then",
        ),
        (
            "http://127.0.0.1:6066",
            "https://127.0.0.1:6066",
            "CERT is now set: `riffle down`, then",
        ),
        ("https://127.0.0.1:6066", "http://127.0.0.1:6066", "CERT is no longer set: `riffle down`, then"),
        ("http://127.0.0.1:6066", "http://127.0.0.2:6066", "HOST is now http://127.0.0.2:6066: `riffle down`, then"),
        ("http://127.0.0.1:6066", "https://127.0.0.1:7077", "PORT is now 7077 and CERT is now set: `riffle down`, then"),
        ("127.0.0.1:19092", "127.0.0.1:19093", "PORT is now 19093: `riffle down`, then"),
    ],
)
def test_who_runs_elsewhere_is_told_by_the_variables_that_differ(tmp_path: Path, there: str, wanted: str, said: str) -> None:
    made = daemon(tmp_path)
    made.record(os.getpid(), there)
    made.require_address(there, "PORT", "HOST", "CERT")
    with pytest.raises(ConfigError) as refused:
        made.require_address(wanted, "PORT", "HOST", "CERT")
    assert f"sleeper is already running at {there}, but {said}" in refused.value.message
