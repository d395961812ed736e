"""A training job as SageMaker runs it: two processes, the gate against the serving release, import and promotion."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner
from conftest import free_port
from learning_corpus import QUICK, contrary_corpus, write_dataset
from moto.server import ThreadedMotoServer

from agents.cli.release import promote, release
from models.release.release import Release, manifest_sha256
from models.release.source import take
from schemas.errors import ReleaseRejected, TransientError
from schemas.settings import Settings
from streams.kafka.announce import CHAMPION, announced
from streams.kafka.topics import ensure_topics
from streams.release_store import upload_release
from training.launch.cli import launch_command
from training.launch.sagemaker import CHECKPOINTS, MODEL
from training.release.learned import Learned

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
JOB = "riffle-train-once"


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "testing")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        client = boto3.client("s3")
        client.create_bucket(Bucket="riffle")
        yield client
    server.stop()


@dataclass
class Ran:
    """Results and output of a job."""

    model: Path
    facts: dict[str, Any]
    said: list[str]
    "Standard error of each process."


def run_job(described: dict[str, Any], source: str, folder: Path) -> Ran:
    """Run a training job on one machine as SageMaker does, except for the location of its folders."""
    algorithm = described["AlgorithmSpecification"]
    command = [*algorithm["ContainerEntrypoint"], *algorithm["ContainerArguments"]]
    model, logs = folder / "model", folder / "logs"
    places = {MODEL: str(model), CHECKPOINTS: str(folder / "checkpoints"), "s3://riffle/archive": source}
    environment = {
        **os.environ,
        **described["Environment"],
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # the Python of the image
        "PET_MASTER_PORT": str(free_port()),
        "PET_LOG_DIR": str(logs),
        "PET_REDIRECTS": "3",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    ran = subprocess.run(
        [places.get(word, word) for word in command],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert logs.is_dir(), ran.stderr[-2_000:]
    found = [next(logs.glob(f"*/attempt_0/{rank}")) for rank in range(2)]
    said = [(each / "stderr.log").read_text() for each in found]
    assert ran.returncode == 0, (ran.stderr[-2_000:], *said)
    assert (found[1] / "stdout.log").read_text() == ""
    return Ran(model, json.loads((found[0] / "stdout.log").read_text().splitlines()[-1]), said)


@pytest.fixture(scope="module")
def champion(s3: Any, learned: Learned, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Store a bad release in S3, which ranks the worst items first; returns its address."""
    heads = tuple(replace(head, weight=-head.weight) for head in learned.manifest.heads)
    bad = replace(learned, manifest=replace(learned.manifest, heads=heads))
    return upload_release(bad.write(tmp_path_factory.mktemp("champion"), {"gate": {"passed": True}}), "s3://riffle/prod")


@pytest.fixture(scope="module")
def jobs(s3: Any, champion: str, vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Ran]:
    """Run the same job twice."""
    place = tmp_path_factory.mktemp("jobs")
    source = str(write_dataset(place / "glass", *contrary_corpus()))
    (quick := place / "quick.json").write_text(json.dumps(QUICK))
    arguments = ["sagemaker", "s3://riffle/archive", "--image", "riffle-train", "--name", JOB, "--processes", "2"]
    arguments += ["--role", "arn:aws:iam::123456789012:role/train", "--output", "s3://riffle/out", "--against", champion]
    arguments += ["--settings", str(quick), "--cache", str(vectors.parent), "--queries", "120", "--holdout", "0.3"]
    arguments += ["--rank-ms", "10000"]
    submitted = CliRunner().invoke(launch_command, arguments, catch_exceptions=False)
    assert submitted.stdout.strip().endswith(f"training-job/{JOB}")
    described = dict(boto3.client("sagemaker").describe_training_job(TrainingJobName=JOB))
    if "Environment" not in described:  # moto stores everything of a job except this
        shown = CliRunner().invoke(launch_command, [*arguments, "--dry-run"], catch_exceptions=False)
        described["Environment"] = json.loads(shown.stdout)["Environment"]
    return [run_job(described, source, place / f"run{n}") for n in range(2)]


@pytest.mark.timeout(600)
def test_two_processes_write_one_release_and_the_second_is_silent(jobs: list[Ran]) -> None:
    for ran in jobs:
        published = Release.open(ran.model / ran.facts["release"], ran.facts["manifest_sha256"])
        written = {path.name for path in ran.model.iterdir() if path.is_dir()}
        assert written == {published.name, published.manifest.metrics["refit"]["of"]}
        assert re.search(r"^\S.*: \d+ (%|s so far)", ran.said[0], re.MULTILINE), "which parts are named depends on the machine"
        assert "…" not in ran.said[1]
        assert "%" not in ran.said[1]


@pytest.mark.timeout(600)
def test_the_same_job_twice_gives_the_same_release_bit_for_bit(jobs: list[Ran]) -> None:
    first, second = (ran.model / ran.facts["release"] for ran in jobs)
    assert first.name == second.name
    sums = [{path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in each.iterdir()} for each in (first, second)]
    assert sums[0] == sums[1]


@pytest.mark.timeout(600)
def test_what_a_job_made_is_judged_against_what_serves_and_promoted_after_it(
    jobs: list[Ran], champion: str, s3: Any, fresh: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, serving = jobs[0], champion.rpartition("/")[2]
    assert ran.facts["gate"]["passed"], ran.facts["gate"]["reasons"]
    assert ran.facts["against"] == serving
    with tarfile.open(archive := tmp_path / "model.tar.gz", "w:gz") as tar:
        tar.add(ran.model, ".")
    key = f"out/{JOB}/output/model.tar.gz"
    s3.upload_file(str(archive), "riffle", key)
    asyncio.run(ensure_topics(fresh))
    for name, value in fresh.environment().items():
        monkeypatch.setenv(name, value)

    def imported(source: str, *more: str) -> Any:
        made = CliRunner().invoke(release, ["import", source, "--json", *more], catch_exceptions=False)
        assert made.exit_code == 0, made.output
        return json.loads(made.stdout)

    with pytest.raises(ReleaseRejected, match="another sha256"):
        imported(f"s3://riffle/{key}", "--sha256", "0" * 64)
    assert imported(champion)["release"] == serving
    found = imported(f"s3://riffle/{key}", "--sha256", ran.facts["manifest_sha256"])
    assert found["release"] == ran.facts["release"]
    assert found["manifest_sha256"] == manifest_sha256(fresh.releases_dir / found["release"])
    with pytest.raises(ReleaseRejected, match="there is no"):
        imported("s3://riffle/out/none/output/model.tar.gz")
    promote(fresh, serving)
    assert promote(fresh, found["release"]) == {"champion": found["release"], "previous": serving}
    named = asyncio.run(announced(fresh))[CHAMPION]
    assert named is not None
    assert named.manifest_sha256 == ran.facts["manifest_sha256"]


def test_s3_that_cannot_be_reached_is_told_from_a_release_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(TransientError, match="cannot be requested"):
        take(tmp_path, "s3://riffle/out/model.tar.gz")
