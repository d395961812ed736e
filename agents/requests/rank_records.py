"""The records between workers and ranking processes: tasks on the topic `rank`, acknowledgements on `rank-acks`.

The address of a task's result is in headers, so that a process can refuse a task whose value it cannot read. A new version of
a schema appends fields with defaults and raises `VERSION`: earlier versions are read by their fingerprint, later ones by their
beginning. So either role may be updated first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agents.requests.replies import Address
from models.features.compute import FEATURES, SPEC
from models.pipeline.batch import Candidates
from models.pipeline.rank_task import Ranked, RankTask
from schemas.codec import Framing, Headers, decode, decode_newer, encode, header_of
from schemas.errors import BadEvent
from schemas.records import AsOf, Request

__all__ = [
    "ANSWERED",
    "MAX_CANDIDATES",
    "RANKED",
    "REFUSED",
    "Ack",
    "Envelope",
    "decode_ack",
    "decode_task",
    "encode_ack",
    "encode_task",
    "envelope_of",
    "number_of",
]

VERSION: Final = 1
"Version of the current schemas of tasks and acknowledgements."
MAX_CANDIDATES = 1_000
"Maximum number of candidates of a task."
ANSWERED, RANKED, REFUSED = "answered", "ranked", "refused"
"""Outcomes of a task: the process has replied to the client; the acknowledgement alone has the result; nothing was ranked,
`code` names the reason."""
TOPIC_NAME = re.compile(r"(?!__)(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")
TASK, WORKER, ACKS, ANSWER_BY, OF_VERSION = "riffle-task", "riffle-worker", "riffle-acks", "riffle-answer-by", "riffle-version"
NUMBER = re.compile(rb"[0-9]{1,16}")
MAX_NAME_BYTES = 64


@dataclass(frozen=True, slots=True)
class Envelope:
    """Where the result of a task goes, and until when."""

    task: bytes
    "Name of the task, unique among those of its worker."
    worker: bytes
    "Name of the worker's run, and key of its acknowledgements."
    acks: int
    "Partition of the acknowledgements that the worker reads."
    answer_by_ms: int
    "Epoch milliseconds after which the task must not be answered, because the worker then ranks by itself."
    version: int = VERSION

    def headers(self) -> list[tuple[str, bytes]]:
        """Return the headers of a task."""
        numbers = ((ACKS, self.acks), (ANSWER_BY, self.answer_by_ms), (OF_VERSION, self.version))
        return [(TASK, self.task), (WORKER, self.worker), *((name, b"%d" % value) for name, value in numbers)]


def number_of(headers: Headers, name: str) -> int:
    """Return the number in a header; -1 if it has none of at most 16 digits."""
    value = header_of(headers, name) or b""
    return int(value) if NUMBER.fullmatch(value) else -1


def envelope_of(headers: Headers) -> Envelope | None:
    """Read the headers of a task; None if its result cannot be addressed."""
    task, worker = header_of(headers, TASK) or b"", header_of(headers, WORKER) or b""
    acks, answer_by_ms, version = (number_of(headers, name) for name in (ACKS, ANSWER_BY, OF_VERSION))
    named = 0 < len(task) <= MAX_NAME_BYTES and 0 < len(worker) <= MAX_NAME_BYTES
    return Envelope(task, worker, acks, answer_by_ms, version) if named and min(acks, answer_by_ms, version) >= 0 else None


def encode_task(task: RankTask, reply: Address | None) -> bytes:
    """Encode a task. With `reply` the process may answer the client itself; its framing must not need a registry.

    Raises:
        BadEvent: `unencodable`.
    """
    c, as_of = task.candidates, task.as_of
    return encode(
        "rank_task",
        {
            "request_id": task.request.request_id,
            "user_id": task.request.user_id,
            "k": task.request.k,
            "explain": task.request.explain,
            "retrieving": task.retrieving,
            "release": task.release,
            "feature_spec": SPEC,
            "diversity": task.diversity,
            "reply": None
            if reply is None
            else {"topic": reply.topic, "correlation": reply.correlation, "framing": reply.framing.value},
            "as_of": None
            if as_of is None
            else {"partition": as_of.partition, "offset": as_of.offset, "event_time": as_of.event_time},
            "degraded": list(task.degraded),
            "timings_ms": dict(task.timings),
            "dropped": dict(task.dropped),
            "sources": list(task.sources),
            "item_ids": list(task.ids),
            "categories": task.categories.astype("<i4").tobytes(),
            "light": c.light.astype("<f4").tobytes(),
            "source_scores": c.source_scores.astype("<f4").tobytes(),
            "features": c.features.astype("<f4").tobytes(),
        },
    )


def decode_task(value: bytes | None, version: int = VERSION) -> tuple[RankTask, Address | None]:
    """Decode a task, and the address of its reply.

    Raises:
        BadEvent: the value cannot be read (as `schemas.codec.decode`), `wrong_shape`, or `feature_spec`: its features are of
            another specification.
    """
    datum = _datum("rank_task", value or b"", version)
    if datum["feature_spec"] != SPEC:
        raise BadEvent("feature_spec", f"features of {datum['feature_spec'][:80]}, this Riffle has {SPEC}")
    n, sources = len(datum["item_ids"]), tuple(datum["sources"])
    if n > MAX_CANDIDATES or not 1 <= datum["k"] <= MAX_CANDIDATES or not 0 <= datum["diversity"] < np.inf:
        raise BadEvent("wrong_shape", f"{n} candidates for {datum['k']} places, at most {MAX_CANDIDATES} are ranked")
    light = _array(datum, "light", "<f4", (n,))
    zero = np.zeros(n, np.int32)
    candidates = Candidates(
        zero,
        np.arange(n, dtype=np.int32),
        _array(datum, "source_scores", "<f4", (n, len(sources))),
        light,
        light,
        _array(datum, "features", "<f4", (n, len(FEATURES))),
        np.zeros((n, 0), np.float32),
    )
    as_of = datum["as_of"]
    task = RankTask(
        Request(datum["request_id"], datum["user_id"], datum["k"], explain=datum["explain"]),
        datum["release"],
        datum["retrieving"],
        datum["diversity"],
        sources,
        datum["item_ids"],
        _array(datum, "categories", "<i4", (n,)),
        candidates,
        tuple(datum["degraded"]),
        datum["timings_ms"],
        datum["dropped"],
        None if as_of is None else AsOf(as_of["partition"], as_of["offset"], as_of["event_time"]),
    )
    return task, _address(datum["reply"], datum["user_id"])


def _address(reply: Mapping[str, Any] | None, user_id: str) -> Address | None:
    if reply is None:
        return None
    if reply["framing"] not in {Framing.JSON.value, Framing.SINGLE_OBJECT.value} or not TOPIC_NAME.fullmatch(reply["topic"]):
        raise BadEvent("wrong_shape", "the reply has no valid topic or framing")
    return Address(reply["topic"], reply["correlation"], Framing(reply["framing"]), user_id)


def _datum(name: str, value: bytes, version: int) -> dict[str, Any]:
    return decode(name, value)[0] if version <= VERSION else decode_newer(name, value)


def _array(datum: Mapping[str, Any], name: str, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
    data: bytes = datum[name]
    if len(data) != 4 * int(np.prod(shape)):
        raise BadEvent("wrong_shape", f"{name} has {len(data)} bytes, not those of {shape}")
    return np.frombuffer(data, kind).reshape(shape)


@dataclass(frozen=True, slots=True)
class Ack:
    """What became of a task."""

    outcome: str
    code: str = ""
    "Reason of a refusal."
    result: Ranked | None = None
    timings: Mapping[str, float] | None = None
    "Milliseconds by stage that the slate shows."


def encode_ack(ack: Ack) -> bytes:
    """Encode an acknowledgement."""
    datum: dict[str, Any] = {"outcome": ack.outcome, "code": ack.code, "timings_ms": dict(ack.timings or {})}
    if ack.result is not None:
        datum["chosen"] = ack.result.chosen.astype("<i4").tobytes()
        datum["scores"] = ack.result.scores.astype("<f4").tobytes()
        datum["heads"] = ack.result.heads.astype("<f4").tobytes()
    return encode("rank_ack", {"chosen": b"", "scores": b"", "heads": b"", **datum})


def decode_ack(value: bytes | None, version: int, candidates: int, heads: int) -> Ack:
    """Decode the acknowledgement of a task with that many candidates, by a ranker with that many heads.

    Raises:
        BadEvent: it cannot be read, or `wrong_shape`: its result is none of such a task.
    """
    datum = _datum("rank_ack", value or b"", version)
    outcome = datum["outcome"]
    if outcome not in {ANSWERED, RANKED}:
        return Ack(REFUSED, datum["code"] or "unknown_outcome")
    m = len(datum["chosen"]) // 4
    chosen = _array(datum, "chosen", "<i4", (m,))
    if len(np.unique(chosen)) != m or not ((chosen >= 0) & (chosen < candidates)).all():
        raise BadEvent("wrong_shape", "the slate names candidates that the task does not have, or one twice")
    scores, probabilities = _array(datum, "scores", "<f4", (m,)), _array(datum, "heads", "<f4", (m, heads))
    return Ack(outcome, "", Ranked(chosen, scores, probabilities), datum["timings_ms"])
