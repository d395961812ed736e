"""Records runs on an MLflow tracking server by its REST interface, without MLflow's client and within seconds per call.

Settings are MLflow's own variables. Runs are optional: callers continue if the server does not answer.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from schemas.errors import NotReady
from schemas.masking import masked_url

__all__ = ["RELEASE", "Run", "Tracker", "Tracking"]

EXPERIMENT = "riffle"
RELEASE = "riffle.release"
"Tag that identifies the run of a release."
PARAMS, METRICS, TAGS = 100, 1_000, 100
"Maximum number of each per request."
PARAM_LENGTH, TAG_LENGTH = 500, 5_000
PROXIED = "mlflow-artifacts:"
MAX_ANSWER_BYTES = 8 << 20
"Maximum size of a response, in bytes."
SAID = 300
"Maximum number of characters of a response that an error message quotes."


@dataclass(frozen=True, slots=True)
class Tracking:
    """Settings of the tracking server."""

    uri: str
    "Base URL of the server, without credentials. Other kinds of stores are refused at first use."
    experiment: str = EXPERIMENT
    authorization: str = field(default="", repr=False)
    "Value of the `Authorization` header; empty: the header is not sent."
    timeout_s: float = 10.0
    "Seconds until a request must be accepted, and seconds until its whole response must have arrived."

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Tracking | None:
        """Read `MLFLOW_TRACKING_URI`, `…_USERNAME`, `…_PASSWORD`, `…_TOKEN` and `MLFLOW_EXPERIMENT_NAME`.

        Returns None without the first.
        """
        given = os.environ if environ is None else environ
        uri = given.get("MLFLOW_TRACKING_URI", "").strip()
        if not uri:
            return None
        name, password = given.get("MLFLOW_TRACKING_USERNAME", ""), given.get("MLFLOW_TRACKING_PASSWORD", "")
        try:
            parts = urllib.parse.urlsplit(uri)
        except ValueError:  # refused when it is used
            return cls(masked_url(uri))
        if parts.username is not None:
            name, password = urllib.parse.unquote(parts.username), urllib.parse.unquote(parts.password or "")
            uri = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        authorization = ""
        if name:
            authorization = "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()
        elif token := given.get("MLFLOW_TRACKING_TOKEN", ""):
            authorization = f"Bearer {token}"
        return cls(uri.rstrip("/"), given.get("MLFLOW_EXPERIMENT_NAME", "").strip() or EXPERIMENT, authorization)

    def demand_server(self) -> None:
        """Check the form of the address, without a request.

        Raises:
            NotReady: it is not the address of a server.
        """
        if not self.uri.startswith(("http://", "https://")):
            raise NotReady(
                "not_recorded",
                f"MLFLOW_TRACKING_URI must be the http(s) address of a tracking server, is {masked_url(self.uri)[:200]!r}: "
                "start one with `mlflow server`, or unset it",
            )


@dataclass(frozen=True, slots=True)
class Run:
    """A run to record. Names are adapted to MLflow (`ndcg@10` becomes `ndcg_at_10`), and long texts are cut."""

    name: str
    started_ms: int
    ended_ms: int
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    artifacts: Mapping[str, bytes]
    "Content of files by name."


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, because a POST would become a GET and credentials are meant for one server only."""

    def redirect_request(self, req: urllib.request.Request, fp: Any, *rest: Any) -> None:
        """Refuse the redirect.

        Raises:
            NotReady: always; the message shows the target of the redirect.
        """
        fp.close()
        elsewhere = str(rest[-1]).partition("/api/2.0/")[0][:SAID]
        raise NotReady("not_recorded", f"{req.host} redirects to {elsewhere}: set MLFLOW_TRACKING_URI to that")


_OPENER = urllib.request.build_opener(_NoRedirects)
_DIRECT = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))
LOOPBACK = re.compile(r"localhost|127\.[0-9.]+|::1")
"Hosts that are reached without a proxy, because a proxy would resolve them to its own machine."


class _Refused(Exception):
    """The server answered with an error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Tracker:
    """Client of the tracking server."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking

    def check(self) -> None:
        """Check that runs can be recorded, and create the experiment if it does not exist.

        Raises:
            NotReady: runs cannot be recorded.
        """
        with _expected():
            self._experiment()

    def record(self, run: Run) -> str:
        """Record a whole run; returns the address of its page.

        Raises:
            NotReady: the server cannot be reached or refuses; parts of the run may have been recorded.
        """
        with _expected():
            return self._record(run)

    def _record(self, run: Run) -> str:
        experiment = self._experiment()
        tags = [{"key": _name(key), "value": value[:TAG_LENGTH]} for key, value in run.tags.items()]
        created = self._call(
            "runs/create",
            {"experiment_id": experiment, "run_name": run.name, "start_time": run.started_ms, "tags": tags[:TAGS]},
        )["run"]["info"]
        run_id = created["run_id"]
        metrics = [
            {"key": _name(key), "value": value, "timestamp": run.ended_ms, "step": 0} for key, value in run.metrics.items()
        ]
        params = [{"key": _name(key), "value": value[:PARAM_LENGTH]} for key, value in run.params.items()]
        for part in _parts(metrics, METRICS):
            self._call("runs/log-batch", {"run_id": run_id, "metrics": part})
        for part in _parts(params, PARAMS):
            self._call("runs/log-batch", {"run_id": run_id, "params": part})
        for name, content in run.artifacts.items():
            self._upload(created["artifact_uri"], name, content)
        self._call("runs/update", {"run_id": run_id, "status": "FINISHED", "end_time": run.ended_ms})
        return f"{self._tracking.uri}/#/experiments/{experiment}/runs/{run_id}"

    def tag(self, release: str, tags: Mapping[str, str]) -> int:
        """Tag the runs of a release; returns their number.

        Raises:
            NotReady: the server cannot be reached or refuses.
        """
        with _expected():
            query = {"experiment_ids": [self._experiment()], "filter": f"tags.`{RELEASE}` = '{release}'", "max_results": 100}
            runs = self._call("runs/search", query).get("runs", [])
            for run in runs:
                for key, value in tags.items():
                    self._call("runs/set-tag", {"run_id": run["info"]["run_id"], "key": key, "value": value[:TAG_LENGTH]})
            return len(runs)

    def _experiment(self) -> str:
        name = self._tracking.experiment
        path = f"experiments/get-by-name?{urllib.parse.urlencode({'experiment_name': name})}"
        try:
            return str(self._ask(path)["experiment"]["experiment_id"])
        except _Refused as exc:
            if exc.code != "RESOURCE_DOES_NOT_EXIST":
                raise NotReady("not_recorded", f"MLflow refuses: {exc}") from exc
        try:
            return str(self._ask("experiments/create", {"name": name})["experiment_id"])
        except _Refused as exc:
            if exc.code != "RESOURCE_ALREADY_EXISTS":  # another training was first
                raise NotReady("not_recorded", f"MLflow refuses: {exc}") from exc
        return str(self._call(path)["experiment"]["experiment_id"])

    def _upload(self, root: str, name: str, content: bytes) -> None:
        if not root.startswith(PROXIED):
            raise NotReady("not_recorded", f"MLflow keeps artifacts at {root[:100]}: start its server with --serve-artifacts")
        folder = urllib.parse.quote(urllib.parse.urlsplit(root).path.strip("/"))
        self._call(f"{folder}/{urllib.parse.quote(name)}", content, base="mlflow-artifacts/artifacts")

    def _call(self, path: str, body: Mapping[str, Any] | bytes | None = None, base: str = "mlflow") -> dict[str, Any]:
        try:
            return self._ask(path, body, base)
        except _Refused as exc:
            raise NotReady("not_recorded", f"MLflow refuses: {exc}") from exc

    def _ask(self, path: str, body: Mapping[str, Any] | bytes | None = None, base: str = "mlflow") -> dict[str, Any]:
        """Send a request: GET without a body, POST for JSON, PUT for bytes."""
        self._tracking.demand_server()
        file = isinstance(body, bytes)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self._tracking.uri}/api/2.0/{base}/{path}",
            data,
            {"Content-Type": "application/octet-stream" if file else "application/json"},
            method="GET" if body is None else "PUT" if file else "POST",
        )
        if self._tracking.authorization:
            request.add_header("Authorization", self._tracking.authorization)
        try:
            direct = LOOPBACK.fullmatch(urllib.parse.urlsplit(self._tracking.uri).hostname or "") is not None
            with (_DIRECT if direct else _OPENER).open(request, timeout=self._tracking.timeout_s) as response:
                found = json.loads(_content(response, self._tracking.timeout_s) or b"{}")
        except urllib.error.HTTPError as exc:
            with exc:
                raise _Refused(*_reason(exc, self._tracking.timeout_s)) from exc
        except (OSError, ValueError, http.client.HTTPException) as exc:
            raise NotReady("not_recorded", f"MLflow at {self._tracking.uri} does not answer: {exc}") from exc
        return dict(found) if isinstance(found, dict) else {}


@contextmanager
def _expected() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError) as exc:
        raise NotReady("not_recorded", f"the server is not MLflow, or of another version: {exc!r}") from exc


def _content(response: Any, timeout_s: float) -> bytes:
    """Read the body of a response; raises OSError if it exceeds `MAX_ANSWER_BYTES` or takes longer than `timeout_s`."""
    ends = time.monotonic() + timeout_s
    content = bytearray()
    while part := response.read1(1 << 16):
        content += part
        if len(content) > MAX_ANSWER_BYTES:
            raise OSError(f"its answer is larger than {MAX_ANSWER_BYTES >> 20} MiB")
        if time.monotonic() > ends:
            raise TimeoutError(f"its answer did not arrive whole within {timeout_s:g} s")
    return bytes(content)


def _reason(exc: urllib.error.HTTPError, timeout_s: float) -> tuple[str, str]:
    try:
        said = json.loads(_content(exc, timeout_s))
        return str(said["error_code"]), f"{said['error_code']}: {said.get('message', '')}"[:SAID]
    except (OSError, ValueError, KeyError, TypeError):
        return "", f"HTTP {exc.code}"


def _name(text: str) -> str:
    return re.sub(r"[^\w\-. /]", "_", text.replace("@", "_at_"))[:250]


def _parts(entries: Sequence[dict[str, Any]], size: int) -> Iterator[Sequence[dict[str, Any]]]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]
