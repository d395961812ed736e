"""Laws of tasks and acknowledgements: they rank as the pipeline does, and either side may be of another version."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_tasks import made_task
from recorded import recorded_requests, world_of

from agents.requests import rank_records as records
from agents.requests.rank_records import (
    ANSWERED,
    MAX_CANDIDATES,
    RANKED,
    REFUSED,
    VERSION,
    Ack,
    Envelope,
    decode_ack,
    decode_task,
    encode_ack,
    encode_task,
    envelope_of,
)
from agents.requests.replies import Address
from models.pipeline.clock import after_all
from models.pipeline.driving import run_here
from models.pipeline.effort import Effort
from models.pipeline.pipeline import CandidatePipeline, PipelineSettings
from models.pipeline.rank_task import Ranked, RankTask, predicted, selected, slate_of
from models.pipeline.rules.book import RuleBook
from models.pipeline.slot import ModelSlot
from models.pipeline.stages import Observer
from models.state.users import Users
from schemas import codec
from schemas.codec import Framing, fingerprint
from schemas.errors import BadEvent
from schemas.records import AsOf, Request
from schemas.rules import rules_from
from training.replay.world import SimulatedWorker

GOLDEN: dict[str, str] = json.loads(Path(__file__).with_name("golden.json").read_text(encoding="utf-8"))
"A record of each version, written by the code of its time. Never change one; add those of a new version."
ADDRESS = Address("replies", b"\x00c\xff", Framing.JSON, "u1")


@pytest.fixture(scope="module")
def world() -> tuple[SimulatedWorker, dict[str, Any]]:
    return world_of()


@pytest.mark.parametrize("effort", [Effort.FULL, Effort.QUARTER])
def test_tasks_give_the_slates_of_the_pipeline_whatever_they_are_ranked_with(
    world: tuple[SimulatedWorker, dict[str, Any]], effort: Effort
) -> None:
    worker, known = world
    pipeline = CandidatePipeline(worker.items, PipelineSettings(light_top=60), slot=worker.slot, clock=after_all)
    asked = [replace(request, explain=n % 3 == 0, k=1 + n % 70) for n, request in enumerate(recorded_requests()[:600])]
    asked[7] = replace(asked[7], candidates=())
    tasks, expected = [], []
    ranker: Any = worker.slot.current
    for start in range(0, len(asked), 20):
        batch = asked[start : start + 20]
        users = Users.of([known.get(request.user_id) for request in batch])
        as_of = [AsOf(0, start, n) if n % 2 else None for n in range(len(batch))]
        prepared = run_here(pipeline.prepare(batch, users, as_of, effort))
        found = pipeline.handed_over(prepared)
        assert found is not None
        tasks += [decode_task(encode_task(task, None))[0] for task in found]
        expected += run_here(pipeline.complete(prepared))
    slates = []
    for start in range(0, len(tasks), 33):
        mine = tasks[start : start + 33]
        results = selected(mine, predicted(mine, ranker), ranker)
        slates += [slate_of(task, result, ranker.heads, {}) for task, result in zip(mine, results, strict=True)]
    for slate, wanted in zip(slates, expected, strict=True):
        assert replace(slate, items=(), timings_ms={}) == replace(wanted, items=(), timings_ms={})
        assert [item.item_id for item in slate.items] == [item.item_id for item in wanted.items]
        for item, other in zip(slate.items, wanted.items, strict=True):
            assert item.score == pytest.approx(other.score, abs=1e-6)
            assert item.sources == other.sources
            assert np.array_equal(item.features, other.features)
            assert (item.explanation is None) == (other.explanation is None)
            if item.explanation is not None and other.explanation is not None:
                assert item.explanation["dropped"] == other.explanation["dropped"]
                assert item.explanation["sources"] == other.explanation["sources"]


def test_nothing_is_handed_over_that_a_process_without_the_catalogue_would_answer_otherwise(
    world: tuple[SimulatedWorker, dict[str, Any]],
) -> None:
    worker, _ = world

    def handed_over(pipeline: CandidatePipeline, effort: Effort = Effort.FULL) -> list[RankTask] | None:
        return pipeline.handed_over(run_here(pipeline.prepare([Request("r", "u1")], Users.of([None]), [None], effort)))

    plain = CandidatePipeline(worker.items, slot=worker.slot, clock=after_all)
    assert handed_over(plain)
    assert handed_over(plain, Effort.LIGHT) is None
    assert handed_over(plain, Effort.POPULAR) is None
    assert handed_over(CandidatePipeline(worker.items, slot=ModelSlot(), clock=after_all)) is None

    ruled = CandidatePipeline(worker.items, slot=worker.slot, clock=after_all)
    rules = [{"name": "a", "kind": "cap", "most": 1, "per": "category"}]
    ruled.rules.swap(RuleBook(rules_from({"rules": rules}), worker.items))
    assert handed_over(ruled) is None
    observed = CandidatePipeline(worker.items, slot=worker.slot, clock=after_all, observers=[Observer()])
    assert handed_over(observed) is None

    class Effect:
        name = "effect"

        def run(self, queries: Any, slates: Any) -> None: ...

    assert handed_over(CandidatePipeline(worker.items, slot=worker.slot, clock=after_all, side_effects=[Effect()])) is None


@pytest.mark.parametrize("reply", [None, ADDRESS, replace(ADDRESS, framing=Framing.SINGLE_OBJECT)])
@pytest.mark.parametrize("n", [0, 1, 40])
def test_a_task_is_read_as_it_was_written(n: int, reply: Address | None) -> None:
    task = made_task(n)
    found, address = decode_task(encode_task(task, reply))
    assert address == reply
    assert replace(found, candidates=task.candidates, categories=task.categories) == task
    assert found.categories.tolist() == task.categories.tolist()
    for name in ("source_scores", "light", "features", "item_row", "query_row"):
        assert np.array_equal(getattr(found.candidates, name), getattr(task.candidates, name), equal_nan=True)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 4))
def test_an_acknowledgement_is_read_as_it_was_written(m: int, more: int, heads: int) -> None:
    rng = np.random.default_rng(m)
    chosen = rng.permutation(m + more)[:m].astype(np.int32)
    result = Ranked(chosen, rng.random(m).astype(np.float32), rng.random((m, heads)).astype(np.float32))
    found = decode_ack(encode_ack(Ack(RANKED, "", result, {"rank": 1.0})), VERSION, m + more, heads)
    assert (found.outcome, found.timings) == (RANKED, {"rank": 1.0})
    assert found.result is not None
    for name in ("chosen", "scores", "heads"):
        assert np.array_equal(getattr(found.result, name), getattr(result, name))
    assert decode_ack(encode_ack(Ack(REFUSED, "release")), VERSION, m, heads) == Ack(REFUSED, "release")


def broken(**changes: Any) -> bytes:
    """A task with other values of these fields."""
    datum = codec.decode("rank_task", encode_task(made_task(), ADDRESS))[0]
    return codec.encode("rank_task", {**datum, **changes})


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (broken(features=b"\0" * 8), "wrong_shape"),
        (broken(features=b"\0" * 7), "wrong_shape"),
        (broken(light=b""), "wrong_shape"),
        (broken(categories=b"\0" * 16), "wrong_shape"),
        (broken(source_scores=b"\0" * 12), "wrong_shape"),
        (broken(item_ids=["a"]), "wrong_shape"),
        (broken(item_ids=["a"] * (MAX_CANDIDATES + 1)), "wrong_shape"),
        (broken(k=0), "wrong_shape"),
        (broken(diversity=-1.0), "wrong_shape"),
        (broken(reply={"topic": "..", "correlation": b"", "framing": "json"}), "wrong_shape"),
        (broken(reply={"topic": "a", "correlation": b"", "framing": "avro-confluent"}), "wrong_shape"),
        (broken(feature_spec="f0"), "feature_spec"),
        (b"", "unknown_framing"),
        (None, "unknown_framing"),
        (b"\xc3\x01" + bytes(8), "unknown_schema"),
        (encode_task(made_task(), None)[:-1], "truncated"),
        (encode_task(made_task(), None) + b"\0", "trailing_bytes"),
        (bytes(codec.MAX_VALUE_BYTES + 1), "too_large"),
    ],
)
def test_a_task_that_cannot_be_ranked_is_refused_with_a_code(value: bytes | None, code: str) -> None:
    with pytest.raises(BadEvent) as refused:
        decode_task(value)
    assert refused.value.code == code


@given(st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 255)), min_size=1, max_size=8), st.integers(0, 2))
def test_changed_bytes_raise_nothing_but_bad_event(changes: list[tuple[int, int]], version: int) -> None:
    value = bytearray(encode_task(made_task(), ADDRESS))
    for at, byte in changes:
        value[at % len(value)] = byte
    ack = bytearray(
        encode_ack(Ack(RANKED, "", Ranked(np.arange(2, dtype=np.int32), np.zeros(2, np.float32), np.zeros((2, 1), np.float32))))
    )
    for at, byte in changes:
        ack[at % len(ack)] = byte
    for read in (lambda: decode_task(bytes(value), version), lambda: decode_ack(bytes(ack), version, 3, 1)):
        try:
            read()
        except BadEvent as exc:
            assert exc.code


@pytest.mark.parametrize("chosen", [[0, 0], [-1], [3]])
def test_a_result_of_another_task_is_refused(chosen: list[int]) -> None:
    m = len(chosen)
    result = Ranked(np.asarray(chosen, np.int32), np.zeros(m, np.float32), np.zeros((m, 1), np.float32))
    with pytest.raises(BadEvent):
        decode_ack(encode_ack(Ack(ANSWERED, "", result)), VERSION, 3, 1)


@given(st.binary(max_size=20), st.binary(max_size=20), st.integers(-1, 5), st.integers(-1, 2**45))
def test_an_envelope_is_read_as_it_was_written_or_not_at_all(task: bytes, worker: bytes, acks: int, answer_by_ms: int) -> None:
    envelope = Envelope(task, worker, acks, answer_by_ms)
    valid = bool(task and worker) and acks >= 0 and answer_by_ms >= 0
    assert envelope_of(envelope.headers()) == (envelope if valid else None)
    assert envelope_of(envelope.headers()[1:]) is None


@pytest.mark.parametrize("name", ["rank_task", "rank_ack"])
def test_either_side_may_have_a_schema_with_more_fields(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.loads(codec.schema_text(name))
    more = [{"name": "later", "type": "string", "default": "unset"}, {"name": "more", "type": ["null", "int"], "default": None}]
    evolved = fastavro.parse_schema({**text, "fields": [*text["fields"], *more]})
    now = codec.load(name)
    task = made_task()
    ack = Ack(
        RANKED, "", Ranked(np.arange(2, dtype=np.int32), np.ones(2, np.float32), np.ones((2, 1), np.float32)), {"rank": 1.0}
    )
    old = encode_task(task, ADDRESS) if name == "rank_task" else encode_ack(ack)

    def read(value: bytes, version: int) -> object:
        if name == "rank_task":
            found, address = decode_task(value, version)
            return found.ids, found.candidates.features.tolist(), found.as_of, address
        back = decode_ack(value, version, 3, 1)
        assert back.result is not None
        return back.outcome, back.result.chosen.tolist(), back.timings

    expected = read(old, VERSION)
    body = codec.decode(name, old)[0]
    # this version reads the next one by its beginning, and only if it is said to be the next one
    with monkeypatch.context() as patched:
        patched.setattr(codec, "load", lambda _: evolved)
        patched.setattr(codec, "header", lambda _: codec.MARKER + fingerprint(evolved))
        new = codec.encode(name, {**body, "later": "x", "more": 7})
    assert read(new, VERSION + 1) == expected
    with pytest.raises(BadEvent, match="is not a version of"):
        read(new, VERSION)
    # the next version reads this one by its fingerprint
    codec._writers.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(codec, "load", lambda _: evolved)
        patched.setattr(codec, "header", lambda _: codec.MARKER + fingerprint(evolved))
        patched.setattr(codec, "_writers", lambda _: {fingerprint(now): now})
        patched.setattr(records, "VERSION", VERSION + 1)
        assert codec.decode(name, old)[0] == {**body, "later": "unset", "more": None}
        assert read(old, VERSION) == expected
    codec._writers.cache_clear()


@pytest.mark.parametrize("version", sorted(GOLDEN))
def test_the_bytes_of_every_version_are_read(version: str) -> None:
    name, _, number = version.partition("/")
    schema = json.loads((codec.FOLDER / "previous" / name / f"{number}.avsc").read_text(encoding="utf-8"))
    found = codec.decode(name, bytes.fromhex(GOLDEN[version]))[0]
    plain = {"string": "ü", "bytes": b"\x00\xff", "int": 7, "double": 0.5, "boolean": True}
    expected = {field["name"]: plain[field["type"]] for field in schema["fields"] if isinstance(field["type"], str)}
    assert expected
    assert found.items() >= expected.items()
    if name == "rank_task":
        assert found["reply"] == {"topic": "ü", "correlation": b"\x00\xff", "framing": "ü"}
        assert found["as_of"] == {"partition": 7, "offset": 1_700_000_000_000, "event_time": 1_700_000_000_000}
        assert (found["item_ids"], found["dropped"]) == (["ü"], {"k": 1_700_000_000_000})
    assert {f"{name}/v{n}" for n in range(1, VERSION + 1)} <= GOLDEN.keys()


@pytest.mark.parametrize("name", ["rank_task", "rank_ack"])
def test_every_version_begins_with_the_fields_of_the_one_before(name: str) -> None:
    folder = codec.FOLDER / "previous" / name
    versions = sorted(folder.glob("v*.avsc"), key=lambda path: int(path.stem[1:]))
    assert len(versions) == VERSION, "the current version is among them"
    fields = [json.loads(path.read_text(encoding="utf-8"))["fields"] for path in versions]
    for before, after in zip(fields, [*fields[1:], json.loads(codec.schema_text(name))["fields"]], strict=True):
        assert after[: len(before)] == before
        assert all("default" in field for field in after[len(before) :])
