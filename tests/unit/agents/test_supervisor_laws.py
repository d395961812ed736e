"""Parts that end by themselves are restarted at growing intervals, and their history is kept; on a fake clock."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from fakes import FakePart
from hypothesis import given
from hypothesis import strategies as st

from agents.processes import parts_of
from agents.supervisor import (
    ASK_S,
    FIRST_S,
    MISCONFIGURED,
    MOST_S,
    STEADY_S,
    History,
    Supervisor,
    backoff_s,
    histories,
    state_file,
)
from schemas.errors import NotReady
from schemas.settings import Settings


@dataclass
class World:
    """A supervisor of `parts`, the time, and the written histories."""

    parts: Sequence[FakePart]
    before: Mapping[str, History] = field(default_factory=dict)
    now: float = 1_000.0
    written: list[dict[str, History]] = field(default_factory=list)
    killed: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        def write(found: Mapping[str, History]) -> None:
            self.written.append({name: replace(history) for name, history in found.items()})

        self.supervisor = Supervisor(
            self.parts, write, self.before, kill=self.kill, clock=lambda: self.now, wall=lambda: self.now
        )
        self.supervisor.look()

    def kill(self, pid: int, number: int) -> None:
        (part,) = (part for part in self.parts if part.process == pid)
        part.end(-number)
        self.killed.append(self.now)

    def after(self, seconds: float) -> World:
        self.now += seconds
        self.supervisor.look()
        return self

    def history(self, name: str) -> History:
        return self.written[-1][name]


@given(st.integers(1, 10_000), st.none() | st.integers(-64, 255))
def test_waits_grow_to_a_bound_and_settings_that_cannot_work_wait_longest(in_row: int, status: int | None) -> None:
    wait = backoff_s(in_row, status)
    assert FIRST_S <= wait <= MOST_S
    assert wait <= backoff_s(in_row + 1, status) <= 2 * wait or status == MISCONFIGURED
    assert backoff_s(in_row, MISCONFIGURED) == MOST_S
    assert backoff_s(1) == FIRST_S


def test_what_ends_is_started_again_after_its_wait_and_not_before() -> None:
    world = World([part := FakePart("worker")])
    assert part.starts == 1
    part.end(1, "the reason")
    world.after(1)
    found = world.history("worker")
    assert (found.exit, found.why, found.in_row, found.restarts) == (1, "the reason", 1, 0)
    assert found.ended_at is not None
    assert found.next_try_at == found.ended_at + FIRST_S * 1000 == 1_002_000
    world.after(FIRST_S - 0.01)
    assert part.starts == 1
    world.after(0.01)
    assert part.starts == 2
    assert (world.history("worker").restarts, world.history("worker").next_try_at) == (1, None)


@given(st.lists(st.floats(0, 2 * STEADY_S), min_size=1, max_size=12))
def test_a_part_that_ran_for_a_while_begins_anew_and_others_wait_longer_each_time(lives: list[float]) -> None:
    world, in_row = World([part := FakePart("worker")]), 0
    for ended, life in enumerate(lives, 1):
        world.now += life  # it was last looked at when it started
        part.end(1)
        world.supervisor.look()
        in_row = 1 if life >= STEADY_S else in_row + 1
        found = world.history("worker")
        assert found.in_row == in_row
        assert found.ended_at is not None
        assert found.next_try_at is not None
        assert found.next_try_at - found.ended_at == pytest.approx(backoff_s(in_row) * 1000, abs=1)
        before = part.starts
        world.after(backoff_s(in_row) - 0.001)
        assert part.starts == before == ended
        world.after(0.002)
        assert part.starts == ended + 1
        assert world.history("worker").restarts == ended


def test_settings_that_cannot_work_are_not_tried_in_a_hot_loop() -> None:
    world = World([part := FakePart("worker")])
    part.ends_at_once = MISCONFIGURED
    part.end(MISCONFIGURED)
    for _ in range(20 * 600):
        world.after(0.05)
    assert part.starts <= 1 + 600 / MOST_S
    world.supervisor.try_now()
    before = part.starts
    world.after(0.05)
    assert part.starts == before + 1, "whoever mended it need not wait"


def test_a_part_that_cannot_be_started_waits_too_and_says_why() -> None:
    part = FakePart("kafka")
    part.failure = NotReady("not_started", "Kafka ended")
    world = World([part])
    assert (world.history("kafka").why, world.history("kafka").exit) == ("Kafka ended", None)
    assert world.history("kafka").in_row == 1
    world.after(FIRST_S)
    assert world.history("kafka").in_row == 2
    part.failure = None
    world.after(2 * FIRST_S)
    assert world.history("kafka").next_try_at is None
    world.after(STEADY_S)
    assert world.history("kafka").in_row == 0


def test_a_signal_is_named_instead_of_a_log_that_says_nothing_of_it() -> None:
    world = World([part := FakePart("redis")])
    part.end(-9, "ready to accept connections")
    world.after(0)
    assert world.history("redis").why == "ended by SIGKILL"


def test_a_worker_is_not_started_while_kafka_is_down_and_kafka_comes_first() -> None:
    kafka, worker = FakePart("kafka"), FakePart("worker", needs=("kafka",))
    order: list[str] = []
    kafka.order = worker.order = order
    world = World([kafka, worker])
    assert order == ["kafka", "worker"]
    kafka.failure = NotReady("not_started", "no")
    kafka.end(1)
    worker.end(1)
    world.after(100)
    assert worker.starts == 1
    kafka.failure = None
    world.after(100)
    assert order == ["kafka", "worker"] * 2


def test_parts_that_run_already_are_taken_over_and_their_past_with_them() -> None:
    worker = FakePart("worker")
    worker.process = 77
    past = History(restarts=3, in_row=2, ended_at=5, exit=1, why="it was so", next_try_at=9)
    world = World([worker], before={"worker": past})
    assert worker.starts == 0
    assert world.history("worker") == History(restarts=3, in_row=0, ended_at=5, exit=1, why="it was so")
    worker.end(None)
    world.after(0)
    assert (world.history("worker").exit, world.history("worker").in_row) == (None, 1)
    assert world.after(FIRST_S).history("worker").restarts == 4


def test_nothing_is_written_while_nothing_changes() -> None:
    world = World([FakePart("worker")])
    written = len(world.written)
    for _ in range(100):
        world.after(1)
    assert len(world.written) == written == 1


def test_histories_are_read_as_they_were_written_and_anything_else_is_none(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert histories(settings) == {}
    settings.run_dir.mkdir()
    found = {"worker": History(2, 1, 3, -9, "why", None)}
    state_file(settings).write_text(json.dumps({name: history.to_json() for name, history in found.items()}))
    assert histories(settings) == found
    for odd in ("", "[]", "null", '{"worker": {"odd": 1}}', '{"other": {}}', '{"worker": 3}'):
        state_file(settings).write_text(odd)
        assert all(history == History() for history in histories(settings).values())


def test_what_the_settings_have_elsewhere_is_not_supervised(tmp_path: Path) -> None:
    every = ["kafka", "redis", "worker", "encoder"]
    assert [part.name for part in parts_of(Settings(home=tmp_path), dict.fromkeys(every, 0))] == every
    elsewhere = Settings(home=tmp_path, bootstrap="kafka:9092", redis_url="redis://there")
    assert [part.name for part in parts_of(elsewhere, dict.fromkeys(every, 0))] == ["worker", "encoder"]
    assert [part.name for part in parts_of(Settings(home=tmp_path), {"redis": 0})] == ["redis"]


@given(st.lists(st.tuples(st.floats(0.1, 40), st.sampled_from([True, False, None])), min_size=1, max_size=60))
def test_a_part_is_killed_only_after_it_has_answered_once_and_then_not_for_long(steps: list[tuple[float, bool | None]]) -> None:
    world = World([part := FakePart("worker", answer=False)])
    last: float | None = None
    for seconds, answer in steps:
        part.answer, before = answer, len(world.killed)
        running = part.process
        world.after(seconds)
        if len(world.killed) > before:
            assert running is not None
            assert answer is False
            assert last is not None
            assert world.now - last >= world.supervisor.patience_s
            last = None
        elif part.process is not None and (answer or (answer is None and last is not None)):
            last = world.now
        if part.process != running:
            last = None


def test_a_part_that_hangs_is_started_anew_and_the_reason_is_kept() -> None:
    world = World([part := FakePart("worker", answer=True)])
    world.after(ASK_S)
    part.answer = False
    while not world.killed:
        world.after(1)
    assert world.killed[0] - (1_000 + ASK_S) == pytest.approx(world.supervisor.patience_s + ASK_S, abs=ASK_S)
    world.after(0.1)
    found = world.history("worker")
    assert (found.exit, found.in_row) == (-9, 0 + 1)
    assert "did not answer" in found.why
    world.after(FIRST_S)
    assert part.starts == 2
    for _ in range(200):
        world.after(1)  # it starts for longer than that, and has not answered yet
    assert len(world.killed) == 1
    part.answer = True
    world.after(ASK_S)
    part.answer = False
    world.after(ASK_S)
    world.after(10 * world.supervisor.patience_s)  # whoever asks was paused
    for _ in range(3):
        world.after(ASK_S)
    assert len(world.killed) == 1


@given(steps=st.integers(1, 40), pause=st.floats(0.1, 3))
def test_a_start_that_takes_long_says_so_at_once_and_holds_up_no_other_part(steps: int, pause: float) -> None:
    kafka, worker, redis = FakePart("kafka"), FakePart("worker", needs=("kafka",)), FakePart("redis")
    world = World([kafka, redis, worker])
    kafka.waits = ["its end is recorded"] * steps
    kafka.end(-9)
    worker.end(1)
    world.after(0.1)
    assert world.history("kafka").next_try_at is not None
    began = world.after(FIRST_S).now
    found = world.history("kafka")
    assert (found.doing, found.next_try_at) == ("its end is recorded", None)
    assert found.doing_since == began * 1000
    redis.end(-9)
    for n in range(1, steps):
        world.after(pause)
        assert kafka.starts == worker.starts == 1, n
    assert world.history("kafka").doing_since == began * 1000
    if (steps - 1) * pause > FIRST_S + pause:
        assert redis.starts == 2
        assert world.history("worker").doing == "waiting for kafka"
        assert world.history("worker").next_try_at is None, "it is due, and no time is shown that has passed"
    world.after(pause)
    assert kafka.starts == 2
    assert (world.history("kafka").doing, world.history("kafka").doing_since) == ("", None)
    world.after(FIRST_S)
    assert worker.starts == 2
    assert [world.history(name).restarts for name in ("kafka", "worker")] == [1, 1]
    assert world.history("worker").doing == ""


def test_a_start_that_fails_half_way_waits_like_any_other_end() -> None:
    part = FakePart("kafka")
    part.waits, part.failure = ["it reads its log"], NotReady("not_started", "no progress")
    world = World([part])
    assert world.history("kafka").doing == "it reads its log"
    world.after(0.25)
    found = world.history("kafka")
    assert (found.doing, found.why, found.in_row) == ("", "no progress", 1)
    assert found.next_try_at == found.ended_at + FIRST_S * 1000  # type: ignore[operator]
    part.failure = None
    world.after(FIRST_S)
    world.supervisor.leave()


REAPS = """
import subprocess, time
from pathlib import Path
from agents.supervisor import Supervisor
child = subprocess.Popen(["true"])
state = Path(f"/proc/{child.pid}/stat")
while state.read_text().rpartition(")")[2].split()[0] != "Z":
    time.sleep(0.01)
Supervisor([], lambda found: None).reap()
assert not state.exists()
child.returncode = 0
"""


def test_a_child_that_nobody_waits_for_does_not_stay_defunct() -> None:
    subprocess.run([sys.executable, "-c", REAPS], check=True, timeout=60)


@pytest.mark.parametrize("failure", [RuntimeError("no thread"), ValueError("a bad file"), KeyError("name")])
def test_a_start_that_fails_in_any_way_is_tried_again_after_its_wait(failure: Exception) -> None:
    world = World([part := FakePart("worker", failure=failure)])
    found = world.history("worker")
    assert (found.in_row, found.why) == (1, f"{type(failure).__name__}: {failure}")
    world.after(FIRST_S - 0.01)
    assert (part.starts, world.history("worker").in_row) == (0, 1)
    part.failure = None
    world.after(0.02)
    assert (part.starts, part.pid()) == (1, 1_001)
    assert world.history("worker").restarts == 1
