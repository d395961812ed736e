"""Trainings as a worker knows them, compared with a plain reading of all reports."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from agents.broadcast.trainings import KEPT_MS, SILENT_MS, Trainings
from agents.metrics import Metrics
from schemas.trainings import KEPT, RUNNING, SILENT, STATES, TrainingProgress, encode_progress
from streams.kafka.chunks import Chunk

DAY_MS = 86_400_000
REPORTS = st.lists(
    st.tuples(st.integers(0, 3 * KEPT), st.sampled_from(STATES), st.floats(0, 1), st.integers(1, DAY_MS)), max_size=150
)


def chunk(records: Sequence[tuple[bytes | None, bytes | None, int]]) -> Chunk:
    keys, values, times = ([record[n] for record in records] for n in range(3))
    return Chunk("riffle.trainings", 0, range(len(records)), keys, values, times, [[]] * len(records))  # type: ignore[arg-type]


@given(REPORTS, st.integers(1, 20), st.integers(0, 2 * KEPT_MS))
def test_the_newest_report_of_the_last_trainings_is_known(
    reports: list[tuple[int, str, float, int]], size: int, later_ms: int
) -> None:
    now, records, newest = 0, [], {}
    for number, state, share, pause in reports:
        now += pause
        found = TrainingProgress(f"t{number}", state=state, share=share)
        records.append((found.training.encode(), encode_progress(found), now))
        newest[found.training] = (now, state, share)
    known = Trainings(Metrics(), lambda: now)
    for at in range(0, len(records), size):
        known.on_trainings(chunk(records[at : at + size]))
    now += later_ms
    wanted = sorted(((at, name, state, share) for name, (at, state, share) in newest.items()), reverse=True)[:KEPT]
    wanted = [one for one in wanted if one[0] >= now - KEPT_MS]
    found_states = [(one["reported_at"], one["training"], one["state"], one["share"]) for one in known.listed()]
    assert found_states == [
        (at, name, SILENT if state == RUNNING and now - at > SILENT_MS else state, share) for at, name, state, share in wanted
    ]


def test_a_training_that_is_killed_is_silent_after_a_minute_and_one_that_ended_is_not() -> None:
    now = 1_000
    known = Trainings(Metrics(), lambda: now)
    for name, state in (("killed", RUNNING), ("ended", "accepted")):
        known.on_trainings(chunk([(name.encode(), encode_progress(TrainingProgress(name, state=state)), now)]))
    now += SILENT_MS
    assert {one["training"]: one["state"] for one in known.listed()} == {"killed": RUNNING, "ended": "accepted"}
    now += 1
    assert {one["training"]: one["state"] for one in known.listed()} == {"killed": SILENT, "ended": "accepted"}
    known.on_trainings(chunk([(b"killed", encode_progress(TrainingProgress("killed")), now)]))
    assert known.listed()[0]["state"] == RUNNING, "it was only slow"


def test_a_bad_record_is_counted_and_the_next_one_is_read() -> None:
    metrics = Metrics()
    known = Trainings(metrics, lambda: 1)
    good = encode_progress(TrainingProgress("t"))
    known.on_trainings(chunk([(b"t", b"\xff", 1), (b"t", None, 1), (b"other", good, 1), (None, good, 1), (b"t", good, 1)]))
    assert [one["training"] for one in known.listed()] == ["t"]
    assert metrics.training_reports.value(outcome="read") == 1
    assert metrics.training_reports.value(outcome="refused", code="key_mismatch") == 2
