"""Faults at random moments of a stream, drawn from seeds: no event is lost or counted twice.

`make faults` runs TRIALS (default 20) of each fault on one continuing stream. `make faults TRIALS=2 FAULT=sleeps` runs fewer
trials of one kind. When all events of a trial are processed, the tables equal an offline recomputation from the topic's
records, byte for byte. Every offset was applied, deduplicated or dead-lettered. The rows on the workers' disks agree with
their changelogs.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from fault_trial import EVENTS, FIRST, TRIALS, Fault, Trial

from streams.embedded.process import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(7_200)]


async def is_killed(trial: Trial) -> None:
    await trial.moment()
    trial.worker.kill()
    await trial.start()


def at(place: str, most: int) -> Fault:
    """Kill the worker at a point in the code, at one of the first `most` times that it gets there."""

    async def fault(trial: Trial) -> None:
        trial.worker.stop()
        await trial.start(f"{place}:{trial.rng.randint(1, most)}", may_die=True)
        more = 0
        while trial.worker.process.poll() is None and more < 30:
            await trial.sent.events(50)
            await asyncio.sleep(0.1)
            more += 1
        assert trial.worker.process.poll() == -signal.SIGKILL, "it never came by that place"
        await trial.start()

    fault.__name__ = place
    return fault


async def is_told_to_stop(trial: Trial) -> None:
    await trial.moment()
    trial.worker.process.terminate()
    assert await trial.ended() == 0, trial.worker.log.read_text()[-3000:]
    await trial.start()


async def sleeps(trial: Trial) -> None:
    """Stop the worker for twice the session timeout while another takes over: it must not overwrite the other's rows."""
    await asyncio.to_thread(trial.second.start, fault="works")
    await trial.moment()
    trial.worker.process.send_signal(signal.SIGSTOP)
    await trial.sent.events(200)
    await asyncio.sleep(2 * trial.settings.session_timeout_s)
    await trial.sent.events(200)
    trial.worker.process.send_signal(signal.SIGCONT)
    await asyncio.sleep(3)
    # it either rejoins the group or is fenced and ends: both are correct, continuing with old state is not
    await asyncio.to_thread(trial.second.stop)


async def gets_and_loses_company(trial: Trial) -> None:
    await trial.moment()
    await asyncio.to_thread(trial.second.start, fault="works")
    await trial.sent.events(200)
    await asyncio.sleep(2)
    # on a busy machine a worker that misses its session is fenced, and ends
    async with trial.supervised(trial.worker, trial.second):
        await trial.agree(trial.settings, trial.other)
    await trial.sent.events(200)
    if trial.rng.random() < 0.5:
        trial.second.kill()
    else:
        await asyncio.to_thread(trial.second.stop)


async def loses_its_broker(trial: Trial) -> None:
    await trial.moment()
    assert trial.kafka.daemon.pid() is not None
    await asyncio.to_thread(trial.kafka.daemon.signal, signal.SIGKILL)
    # a process that is still ending would count as running
    await asyncio.to_thread(wait_until, lambda: trial.kafka.daemon.pid() is None, 10.0)
    await trial.moment()
    # both are correct: to recover, and to end rather than skip a record
    await asyncio.to_thread(trial.kafka.start)


async def loses_a_folder(trial: Trial) -> None:
    await trial.moment()
    trial.worker.kill()
    shutil.rmtree(trial.table(), ignore_errors=True)
    await trial.start()


async def finds_a_flipped_byte(trial: Trial) -> None:
    await trial.moment()
    # a clean stop writes tables to disk: kill only sometimes, so that both tables and logs are hit
    if trial.rng.random() < 0.5:
        trial.worker.kill()
    else:
        await asyncio.to_thread(trial.worker.stop)
    files = sorted(path for path in trial.table().glob("*") if path.suffix in {".sst", ".log"} and path.stat().st_size)
    if files:
        path = trial.rng.choice(files)
        data = bytearray(path.read_bytes())
        data[trial.rng.randrange(len(data))] ^= 0x55
        path.write_bytes(bytes(data))
    await trial.start(may_die=True)  # because of the damage


async def cannot_write_its_changelog(trial: Trial) -> None:
    """Make the broker refuse changelog records: nothing is committed, the worker is not ready, and later recovers."""
    await _limit(trial, "200")
    await trial.sent.events(100)
    assert await asyncio.to_thread(wait_until, lambda: not trial.worker.ready(), 60), "it went on past a flush that failed"
    await trial.moment(5.0)
    assert trial.worker.process.poll() is None
    await _limit(trial, "2097152")
    assert await asyncio.to_thread(wait_until, trial.worker.ready, 60)


async def _limit(trial: Trial, most_bytes: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=trial.settings.bootstrap_servers)
    await admin.start()
    topic = trial.settings.topic("users-changelog")
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": most_bytes})])
    await admin.close()


async def is_fed_poison(trial: Trial) -> None:
    """Produce malformed records, such as random bytes and values of almost 1 MB, and kill the worker among them."""
    feeding = asyncio.create_task(trial.sent.events(400, poison=0.05))
    await is_killed(trial)
    await feeding


async def is_told_three_times(trial: Trial) -> None:
    repeating = asyncio.create_task(trial.sent.events(300, times=3))
    await is_killed(trial)
    await repeating


async def has_a_clock_that_jumps(trial: Trial) -> None:
    trial.worker.stop()
    await trial.start(f"steps_the_clock:{trial.rng.randint(1, 4)}")
    await trial.sent.events(300)


FAULTS: list[Fault] = [
    is_killed,
    at("dies_in_mid_chunk", 8),
    at("dies_before_the_acknowledgement", 8),
    at("dies_before_the_commit", 8),
    at("dies_after_the_commit", 8),
    at("dies_after_the_write", 12),
    is_told_to_stop,
    sleeps,
    gets_and_loses_company,
    loses_its_broker,
    loses_a_folder,
    finds_a_flipped_byte,
    cannot_write_its_changelog,
    is_fed_poison,
    is_told_three_times,
    has_a_clock_that_jumps,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_nothing_is_lost_or_counted_twice_when_a_worker(fault: Fault, trial: Trial) -> None:
    await trial.start()
    for seed in range(FIRST, FIRST + TRIALS):
        trial.rng.seed(seed)
        load = asyncio.create_task(trial.sent.events(EVENTS))
        await fault(trial)
        await load
        await trial.sent.events(50)
        try:
            async with trial.supervised(trial.worker):
                await trial.sent.check(timeout_s=90)
                await trial.agree(trial.settings)
        except AssertionError as error:
            error.add_note(f"seed {seed}; log: {trial.worker.log.read_text()[-3000:]}")
            raise
    await asyncio.to_thread(trial.worker.stop)
    await trial.sent.check_disk(trial.settings)


WRONG: list[tuple[str, bool]] = [
    ("wrong_disk_first:5", True),
    ("wrong_offsets_only:2", False),
    ("wrong_applies_again", False),
    ("wrong_swallows_bad_records", False),
    ("wrong_takes_half_a_chunk", True),
]


@pytest.mark.parametrize(("wrong", "dies"), WRONG)
async def test_the_checks_notice_a_build_that_is_wrong(wrong: str, dies: bool, trial: Trial) -> None:
    await trial.start(wrong)
    for _ in range(24):
        await trial.sent.events(50, poison=0.02)
        await asyncio.sleep(0.2)
        if trial.worker.process.poll() is not None:
            break  # no further events: they would write the lost rows
    if dies:
        await trial.ended()
        await trial.start()
    with pytest.raises(AssertionError):
        await trial.sent.check(timeout_s=15)


async def test_a_worker_that_stands_still_is_no_longer_alive(trial: Trial, worker_of: Callable[..., Any]) -> None:
    settings = replace(trial.settings, stuck_s=3.0)
    worker = worker_of(settings)
    await asyncio.to_thread(worker.start, fault="stands_still")
    await trial.sent.events(400)

    def stuck() -> bool:
        try:
            urllib.request.urlopen(f"{settings.web}/healthz", timeout=5)
        except urllib.error.HTTPError as error:
            return error.code == 503 and settings.topic("interactions-0") in error.read().decode()
        return False

    assert await asyncio.to_thread(wait_until, stuck, 40)
