"""Laws of the processes of one home: names, arguments of the supervisor, settings and ports of several workers."""

from __future__ import annotations

import random
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.processes import (
    KINDS,
    MOST_WORKERS,
    PartProcess,
    free_web_ports,
    in_order,
    left_over,
    number_of,
    parts_of,
    worker_name,
    worker_settings,
)
from agents.supervisor import from_arguments, to_arguments
from schemas.errors import ConfigError
from schemas.settings import Settings

HOME = Path("/home-of-no-one")
numbers = st.integers(1, MOST_WORKERS)
names = st.one_of(st.sampled_from(KINDS), numbers.map(worker_name))


@given(numbers)
def test_a_worker_is_found_again_by_its_name(number: int) -> None:
    assert number_of(worker_name(number)) == number


@given(st.text(max_size=12))
def test_no_other_name_is_a_part(text: str) -> None:
    known = {*KINDS, *map(worker_name, range(1, 100))}
    assert in_order([text]) == ([text] if text in known else [])


@given(st.dictionaries(names, st.integers(0, 65_535)))
def test_the_arguments_of_a_supervisor_hold_its_parts_and_ports(ports: dict[str, int]) -> None:
    found = from_arguments(to_arguments(ports))
    assert found == ports
    assert list(found) == in_order(ports)


@given(st.lists(names, unique=True), st.randoms(use_true_random=False))
def test_parts_start_in_one_order_servers_first_then_workers_by_number(some: list[str], chance: random.Random) -> None:
    mixed = list(some)
    chance.shuffle(mixed)
    ordered = in_order(mixed)
    assert sorted(ordered) == sorted(some)
    workers = [number for name in ordered if (number := number_of(name)) is not None]
    assert workers == sorted(workers)
    assert [KINDS.index(name.partition("-")[0]) for name in ordered] == sorted(
        KINDS.index(name.partition("-")[0]) for name in some
    )


@given(st.sets(numbers, min_size=2, max_size=6), st.sampled_from(["", "off", "s3://bucket/archive", "/archive"]))
def test_workers_share_the_servers_and_the_archive_and_nothing_they_write(some: set[int], archive: str) -> None:
    settings = Settings(home=HOME, archive=archive, instance="name").resolved()
    made = [worker_settings(settings, number, settings.web_port + number) for number in sorted(some)]
    for one in made:
        assert (one.bootstrap_servers, one.redis) == (settings.bootstrap_servers, settings.redis)
        assert (one.archive_target, one.releases_dir) == (settings.archive_target, settings.releases_dir)
        assert one.home == settings.home or settings.home in one.home.parents, "all of it below the home"
        assert Settings.from_env({**one.environment(), "RIFFLE_HOME": "/"}).web_port == one.web_port
    for own in ("data_dir", "run_dir", "logs_dir", "web", "instance", "home"):
        assert len({getattr(one, own) for one in made}) == len(made), own


@pytest.mark.parametrize(("given_to_all", "second"), [("", ""), ("off", "off"), ("[::1]:80", "[::1]:7001"), ("a:1", "a:7001")])
def test_each_worker_advertises_its_own_port(given_to_all: str, second: str) -> None:
    settings = Settings(home=HOME, web_advertised=given_to_all)
    assert worker_settings(settings, 1, 7_001) == settings
    assert worker_settings(settings, 2, 7_001).web_advertised == second


def test_further_workers_get_the_next_free_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken = int(listening.getsockname()[1])
        settings = Settings(home=HOME, web_port=min(taken, 65_000) - 1)
        found = free_web_ports(settings, {2, 3, 4}, [taken + 1])
    assert list(found) == [2, 3, 4]
    assert len({*found.values(), settings.web_port, taken, taken + 1}) == 6
    with pytest.raises(ConfigError, match="RIFFLE_WEB_PORT"):
        free_web_ports(Settings(home=HOME, web_port=65_535), {2})


def test_servers_ports_are_left_to_them() -> None:
    settings = Settings(home=HOME, web_port=20_001, kafka_port=20_002, controller_port=20_003, redis_port=20_004)
    assert not set(free_web_ports(settings, {2, 3}).values()) & {20_001, 20_002, 20_003, 20_004}


def test_a_part_of_each_worker_has_its_settings(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    found = parts_of(settings, {"worker": 0, "worker-2": 7_002, "worker-3": 7_003})
    assert [part.name for part in found] == ["worker", "worker-2", "worker-3"]
    settings_of = [part.settings for part in found if isinstance(part, PartProcess)]
    assert settings_of == [settings, worker_settings(settings, 2, 7_002), worker_settings(settings, 3, 7_003)]


def test_rows_of_workers_that_do_not_run_are_named(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    for number in (2, 3):
        (tmp_path / "workers" / str(number) / "data" / "tables" / "users" / "0").mkdir(parents=True)
    (tmp_path / "workers" / "4" / "data" / "tables").mkdir(parents=True)
    (tmp_path / "workers" / "odd").mkdir()
    assert list(left_over(settings, {1, 2})) == [3], "worker 4 has no rows"
    assert left_over(settings, {1, 2, 3}) == {}
