"""A release is recorded as a run; the server's behaviour never affects the release."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from click.testing import CliRunner
from learning_corpus import POSITIVE, corpus

from agents.cli.release import note
from models.release.tracking import RELEASE, Run, Tracker, Tracking
from schemas.errors import NotReady
from training.cli.train import train_command
from training.recipe import LearnSettings
from training.release.record import forewarn, record, run_of

MLFLOW = shutil.which("mlflow", path=os.pathsep.join([str(Path(sys.prefix) / "mlflow" / "bin"), os.environ.get("PATH", "")]))
NAME = re.compile(r"[\w\-./ ]{1,250}")
FACTS: dict[str, Any] = {
    "release": "20260131-0123456789",
    "folder": "somewhere",
    "gate": {
        "passed": False,
        "reasons": ["only 9 queries to judge by, 50 are needed", "another"],
        "ndcg@10": 0.25,
        "parity": {"worst": 1e-6},
    },
    "before": {"ndcg@10": 0.1, "hr@10": 0.2, "stages": {"ranked": 0.5, "filtered:seen": 0.5}},
    "after": {"ndcg@10": 0.25, "mrr": float("nan"), "stages": {}},
    "seed": 3,
    "against": "20260130-aaaaaaaaaa",
    "parity": 1e-6,
    "events": 900,
    "items": 40,
    "training_seconds": {"encode text": 1.5},
    "seconds": 12.5,
}


class Fake(ThreadingHTTPServer):
    """The used part of MLflow's interface in memory, with the limits in its reference."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.headers: list[str] = []
        self.broken = ""
        "Path at which the server fails."
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rpartition("/")[2]
                if name not in fake.files:
                    self.answer({})
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(fake.files[name])))
                self.end_headers()
                self.wfile.write(fake.files[name])

            def do_POST(self) -> None:
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def do_PUT(self) -> None:
                fake.files[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
                self.answer({})

            def answer(self, body: dict[str, Any]) -> None:
                fake.headers.append(self.headers.get("Authorization", ""))
                path, _, query = self.path.partition("?")
                called = path.removeprefix("/api/2.0/")
                try:
                    if fake.broken and fake.broken in called:
                        raise KeyError("INTERNAL_ERROR")
                    status, said = 200, fake.call(called, body, dict(urllib.parse.parse_qsl(query)))
                except KeyError as exc:
                    status, said = 400, {"error_code": exc.args[0], "message": "no"}
                data = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"

    def call(self, called: str, body: dict[str, Any], query: dict[str, str]) -> dict[str, Any]:
        if called.startswith("mlflow-artifacts/artifacts/"):
            return {}
        match called:
            case "mlflow/experiments/get-by-name":
                if query["experiment_name"] not in self.experiments:
                    raise KeyError("RESOURCE_DOES_NOT_EXIST")
                return {"experiment": {"experiment_id": self.experiments[query["experiment_name"]]}}
            case "mlflow/experiments/create":
                if body["name"] in self.experiments:
                    raise KeyError("RESOURCE_ALREADY_EXISTS")
                self.experiments[body["name"]] = str(len(self.experiments) + 1)
                return {"experiment_id": self.experiments[body["name"]]}
            case "mlflow/runs/create":
                run_id = f"run{len(self.runs)}"
                info = {
                    "run_id": run_id,
                    "run_name": body["run_name"],
                    "status": "RUNNING",
                    "artifact_uri": f"mlflow-artifacts:/{body['experiment_id']}/{run_id}/artifacts",
                }
                self.runs[run_id] = {"info": info, "data": {"params": [], "metrics": [], "tags": body["tags"]}}
                return {"run": self.runs[run_id]}
            case "mlflow/runs/log-batch":
                for kind, most in (("params", 100), ("metrics", 1_000)):
                    entries = body.get(kind, [])
                    if len(entries) > most or not all(NAME.fullmatch(entry["key"]) for entry in entries):
                        raise KeyError("INVALID_PARAMETER_VALUE")
                    self.runs[body["run_id"]]["data"][kind] += entries
                return {}
            case "mlflow/runs/update":
                self.runs[body["run_id"]]["info"]["status"] = body["status"]
                return {}
            case "mlflow/runs/set-tag":
                tags = self.runs[body["run_id"]]["data"]["tags"]
                tags[:] = [tag for tag in tags if tag["key"] != body["key"]] + [{"key": body["key"], "value": body["value"]}]
                return {}
            case "mlflow/runs/search":
                key, value = re.fullmatch(r"tags\.`([^`]+)` = '([^']+)'", body["filter"]).groups()  # type: ignore[union-attr]
                tag = {"key": key, "value": value}
                return {"runs": [run for run in self.runs.values() if tag in run["data"]["tags"]]}
        raise KeyError("ENDPOINT_NOT_FOUND")


@pytest.fixture
def fake() -> Iterator[Fake]:
    made = Fake()
    thread = Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server over SQLite; `make mlflow` installs it."""
    if MLFLOW is None:
        pytest.skip("no MLflow server here: make mlflow")
    home = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stores = ["--backend-store-uri", f"sqlite:///{home}/runs.db", "--artifacts-destination", str(home / "files")]
    command = [MLFLOW, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *stores]
    alone = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=home, start_new_session=True, env=os.environ | alone)
    try:
        until = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, (home / "log").read_text()[-3000:]
            assert time.monotonic() < until
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(params=["fake", "real"])
def server(request: pytest.FixtureRequest) -> str:
    """Base URL of a server."""
    found = request.getfixturevalue(request.param)
    return found if isinstance(found, str) else str(found.uri)


def runs(uri: str, release: str) -> list[dict[str, Any]]:
    """Return the runs of a release from the server."""
    tracker = Tracker(Tracking(uri))
    query = {"experiment_ids": [tracker._experiment()], "filter": f"tags.`{RELEASE}` = '{release}'", "max_results": 10}
    found = tracker._call("runs/search", query).get("runs", [])
    flat = []
    for run in found:
        data = {kind: {entry["key"]: entry["value"] for entry in run["data"].get(kind, ())} for kind in run["data"]}
        flat.append({**run["info"], **data})
    return flat


def test_a_run_says_what_was_set_what_was_measured_and_what_was_decided(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = Tracking(server)
    many = {f"a{n}": 0.1 for n in range(150)}
    settings = LearnSettings(seed=3, heads={"cart": 0.3, **many}, text_model="x" * 2_000)
    files = {"page.html": "<html>ü".encode(), "manifest.json": b"{}"}
    said = record(tracking, FACTS, "prints & co", settings, files)
    assert set(said) == {"run"}
    (run,) = runs(server, FACTS["release"])
    assert said["run"].endswith(f"/runs/{run['run_id']}")
    assert (run["run_name"], run["status"]) == (FACTS["release"], "FINISHED")
    assert run["params"]["towers.epochs"] == str(settings.towers.epochs)
    assert run["params"]["heads.cart"] == "0.3"
    assert run["params"]["heads.a149"] == "0.1"
    assert len(run["params"]["text_model"]) == 500
    assert run["metrics"]["after.ndcg_at_10"] == 0.25
    assert run["metrics"]["gate.passed"] == 0.0
    assert run["metrics"]["before.stages.filtered_seen"] == 0.5
    assert run["metrics"]["training_seconds.encode text"] == 1.5
    assert "after.mrr" not in run["metrics"], "what is no number is left out"
    expected = {
        RELEASE: FACTS["release"],
        "riffle.parent": FACTS["against"],
        "riffle.dataset": "prints & co",
        "riffle.decision": "refused",
        "riffle.reasons": "only 9 queries to judge by, 50 are needed; another",
    }
    assert expected.items() <= run["tags"].items()
    root = urllib.parse.urlsplit(run["artifact_uri"]).path.strip("/")
    for name, content in files.items():
        with urllib.request.urlopen(f"{server}/api/2.0/mlflow-artifacts/artifacts/{root}/{name}", timeout=10) as response:
            assert response.read() == content
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    note(FACTS["release"], {"riffle.decision": "promoted", "riffle.previous": "none"})
    note("20260131-never", {"riffle.decision": "promoted"})
    (again,) = runs(server, FACTS["release"])
    assert again["tags"]["riffle.decision"] == "promoted"
    assert again["tags"]["riffle.parent"] == FACTS["against"]


@pytest.mark.slow
def test_a_training_records_its_release_with_the_page_and_the_manifest(
    fake: Fake, vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, events = corpus()
    data = tmp_path / "data"
    data.mkdir()
    (data / "items.jsonl").write_text("".join(json.dumps(asdict(item)) + "\n" for item in items))
    later = [replace(event, event_time=event.event_time + 10**12) for event in events]
    (data / "events.jsonl").write_text("".join(json.dumps(asdict(event)) + "\n" for event in later))
    settings = {
        "towers": {"dimensions": 16, "blocks": 1, "epochs": 1},
        "ranker": {"width": 16, "experts": 2, "epochs": 1},
        "queries": 50,
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", fake.uri)
    monkeypatch.setattr("training.cli.train.GATE_QUERIES", 20)
    monkeypatch.setattr("training.trainer.threads", lambda *_: 1)
    options = ["--settings", str(tmp_path / "settings.json"), "--positive", POSITIVE, "--cache", str(vectors.parent)]
    options += ["--out", str(tmp_path / "releases"), "--report", str(tmp_path / "page.html"), "--json"]
    ran = CliRunner().invoke(train_command, [str(data), *options], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    facts = json.loads(ran.stdout.splitlines()[-1])
    (run,) = runs(fake.uri, facts["release"])
    assert facts["mlflow"]["run"].endswith(run["run_id"])
    assert run["params"]["queries"] == "50"
    assert run["metrics"]["after.ndcg_at_10"] == facts["after"]["ndcg@10"]
    assert run["tags"]["riffle.reasons"] == "; ".join(facts["gate"]["reasons"])
    kept = {
        "page.html": tmp_path / "page.html",
        "manifest.json": tmp_path / "releases" / facts["release"] / "manifest.json",
        f"{facts['release']}.report.json": tmp_path / "releases" / f"{facts['release']}.report.json",
    }
    assert fake.files == {name: path.read_bytes() for name, path in kept.items()}


def test_files_arrive_whole_and_the_run_ends(fake: Fake) -> None:
    files = {"r.html": bytes(range(256)), "a b.json": b"{}"}
    Tracker(Tracking(fake.uri)).record(Run("r", 1_000, 2_000, {}, {}, {}, files))
    assert fake.files == {"r.html": bytes(range(256)), "a%20b.json": b"{}"}
    assert [run["info"]["status"] for run in fake.runs.values()] == ["FINISHED"]


@pytest.mark.parametrize("broken", ["get-by-name", "runs/create", "log-batch", "mlflow-artifacts", "runs/update"])
def test_a_server_that_refuses_costs_the_record_alone(fake: Fake, broken: str, caplog: pytest.LogCaptureFixture) -> None:
    fake.broken = broken
    said = record(Tracking(fake.uri), FACTS, "d", LearnSettings(), {"a": b"b"})
    assert "INTERNAL_ERROR" in said["not_recorded"]
    assert "the release is written, but not recorded" in caplog.text


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("http://127.0.0.1:9", "does not answer"),
        ("file:/tmp/mlruns", "start one with `mlflow server`"),
        ("databricks", "must be the http(s) address"),
        ("http://", "must be the http(s) address"),
    ],
)
def test_no_server_is_said_before_and_after_and_costs_nothing(uri: str, told: str, caplog: pytest.LogCaptureFixture) -> None:
    tracking = Tracking.from_env({"MLFLOW_TRACKING_URI": uri})
    assert tracking is not None
    forewarn(tracking)
    assert told in caplog.text
    caplog.clear()
    assert told in record(tracking, FACTS, "d", LearnSettings(), {})["not_recorded"]
    assert told in caplog.text


def test_an_answer_that_is_none_is_a_failure(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "call", lambda called, body, query: {"unexpected": []})
    with pytest.raises(NotReady, match="not MLflow"):
        Tracker(Tracking(fake.uri)).check()
    assert "not MLflow" in record(Tracking(fake.uri), FACTS, "d", LearnSettings(), {})["not_recorded"]


def test_settings_are_mlflows_own_and_credentials_are_shown_nowhere(fake: Fake) -> None:
    assert Tracking.from_env({}) is None
    forewarn(None)
    named = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "s3cret"}
    for given, header in (
        ({**named, "MLFLOW_TRACKING_URI": f"{fake.uri}/"}, "Basic bWU6czNjcmV0"),
        ({"MLFLOW_TRACKING_URI": fake.uri.replace("//", "//me:s3cret@")}, "Basic bWU6czNjcmV0"),
        ({"MLFLOW_TRACKING_URI": fake.uri, "MLFLOW_TRACKING_TOKEN": "s3cret"}, "Bearer s3cret"),
        ({"MLFLOW_TRACKING_URI": fake.uri}, ""),
    ):
        tracking = Tracking.from_env({**given, "MLFLOW_EXPERIMENT_NAME": "prints"})
        assert tracking is not None
        assert (tracking.uri, tracking.experiment) == (fake.uri, "prints")
        assert "s3cret" not in repr(tracking)
        Tracker(tracking).check()
        assert fake.headers[-1] == header
    assert list(fake.experiments) == ["prints"]


def test_a_passed_release_is_one() -> None:
    facts = {**FACTS, "gate": {"passed": True, "reasons": []}}
    run = run_of(facts, "d", LearnSettings(), {}, 100_000)
    assert (run.tags["riffle.decision"], run.tags["riffle.reasons"], run.metrics["gate.passed"]) == ("passed", "", 1.0)
    assert (run.started_ms, run.ended_ms) == (87_500, 100_000)


def test_where_a_server_leads_on_is_told(fake: Fake) -> None:
    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(301)
            self.send_header("Location", fake.uri + self.path)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as before:
        Thread(target=before.serve_forever, daemon=True).start()
        with pytest.raises(NotReady, match="set MLFLOW_TRACKING_URI to that") as found:
            Tracker(Tracking(f"http://127.0.0.1:{before.server_port}")).check()
        before.shutdown()
    assert fake.uri in found.value.message
    assert not fake.runs
