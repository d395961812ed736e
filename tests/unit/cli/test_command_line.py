"""The command line in separate processes: an error is one line, without a stack trace and without log lines of libraries."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.settings import Settings

DRIVER = """
import sys
from agents.cli import main
for line in sys.argv[1:]:
    sys.argv[1:] = line.split()
    try:
        main()
    except SystemExit as end:
        print(f"[{end.code}] {line}", flush=True, file=sys.stderr)
"""


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture
def nothing_runs(tmp_path: Path) -> Settings:
    kafka, controller, redis, web = free_ports(4)
    return Settings(
        home=tmp_path / "home", kafka_port=kafka, controller_port=controller, redis_port=redis, web_port=web
    ).resolved()


def run(settings: Settings, *lines: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run several commands in one process, each followed by a line on stderr with its exit code."""
    environment = {**os.environ, **settings.environment(), **more}
    command = [sys.executable, "-c", DRIVER, *lines]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_without_kafka_every_command_says_so_in_one_line(nothing_runs: Settings, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id\na\n")
    (tmp_path / "events.csv").write_text("user_id,item_id,event_time\nu,a,1700000000000\n")
    lines = [
        f"load {tmp_path}",
        f"replay {tmp_path}",
        "dlq list",
        "dlq replay --all",
        "ask someone",
        "topics",
        "topics create",
        "release rollback",
        "train --promote",
        "worker",
    ]
    ran = run(nothing_runs, *lines)
    said = f"riffle: no Kafka answers at {nothing_runs.bootstrap_servers}: run `riffle up`, or see `riffle doctor`"
    assert ran.stderr.splitlines() == [text for line in lines for text in (said, f"[1] {line}")]
    assert ran.stdout == ""


def test_the_version_is_told(nothing_runs: Settings) -> None:
    assert run(nothing_runs, "--version").stdout.startswith("riffle 0.")


def test_training_with_an_unknown_option_shows_the_usage_of_the_command(nothing_runs: Settings) -> None:
    ran = run(nothing_runs, "train --bogus")
    usage, *_ = ran.stderr.splitlines()
    assert usage.startswith("Usage: riffle train [OPTIONS]")
    error, last = ran.stderr.splitlines()[-2:]
    assert error.startswith("Error: No such option: --bogus")
    assert last == "[2] train --bogus"


def test_doctor_warns_of_unknown_variables_and_advises_on_what_is_bad_alone(nothing_runs: Settings) -> None:
    ran = run(nothing_runs, "doctor --json", "doctor", RIFFLE_KAFKA_PROT="1")
    first, *text = ran.stdout.splitlines()
    checks = json.loads(first)
    assert all(("advice" in check) == (not check["ok"]) for check in checks)
    (warned,) = [check for check in checks if "warning" in check]
    assert warned["check"] == "RIFFLE_KAFKA_PROT"
    assert warned["ok"]
    assert "RIFFLE_KAFKA_PORT" in warned["warning"]
    assert len(text) == len(checks), "a line for each check"
    assert [line.split()[0] for line in text] == [
        "BAD" if not check["ok"] else "WARN" if "warning" in check else "ok" for check in checks
    ]
    assert {"topics"} <= {check["check"] for check in checks}


def test_a_setting_that_cannot_work_is_one_line(nothing_runs: Settings) -> None:
    ran = run(nothing_runs, "status", RIFFLE_WEB_PORT="70000")
    assert ran.stderr.splitlines() == ["riffle: RIFFLE_WEB_PORT must lie in 1..65535, is 70000", "[1] status"]


def test_with_json_what_goes_wrong_is_the_last_line_too(nothing_runs: Settings, tmp_path: Path) -> None:
    lines = [
        f"load {tmp_path}/nope --json",
        "release promote nope --json",
        f"evaluate {tmp_path}/nope --json",
        "evaluate --frob --json",
        f"train {tmp_path}/nope --json",
        f"train {tmp_path}/nope --frob --json",
        f"examples {tmp_path}/nope --out {tmp_path}/out --json",
        "dlq list --json",
    ]
    ran = run(nothing_runs, *lines)
    told = [json.loads(line)["error"] for line in ran.stdout.splitlines()]
    assert [error["code"] for error in told] == [
        "no_folder",
        "not_found",
        "no_folder",
        "usage",
        "no_folder",
        "usage",
        "no_archive",
        "failed",
    ]
    assert all(error["message"] for error in told)
    assert "Traceback" not in ran.stderr
