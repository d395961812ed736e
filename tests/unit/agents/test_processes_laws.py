"""Laws of the processes of one home: names, arguments of the supervisor, settings and ports of several workers."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.processes import (
    KINDS,
    MOST,
    ROLES,
    PartProcess,
    Role,
    free_ports,
    in_order,
    left_over,
    name_of,
    number_of,
    parts_of,
    role_of,
    running,
    settings_of,
)
from agents.supervisor import from_arguments, to_arguments
from schemas.errors import ConfigError
from schemas.settings import Settings

HOME = Path("/home-of-no-one")
numbers = st.integers(1, MOST)
roles = st.sampled_from(list(ROLES.values()))
names = st.one_of(st.sampled_from(KINDS), st.builds(name_of, roles, numbers))


@given(roles, numbers)
def test_a_process_is_found_again_by_its_name(role: Role, number: int) -> None:
    name = name_of(role, number)
    assert (role_of(name), number_of(name)) == (role, number)


@given(st.text(max_size=12))
def test_no_other_name_is_a_part(text: str) -> None:
    known = {*KINDS, *(f"{kind}-{number}" for kind in ROLES for number in range(1, 100))}
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
    for role in ROLES.values():
        placed = [number_of(name) for name in ordered if role_of(name) is role]
        assert placed == sorted(placed)
    assert [KINDS.index(name.partition("-")[0]) for name in ordered] == sorted(
        KINDS.index(name.partition("-")[0]) for name in some
    )


@given(st.sets(numbers, min_size=2, max_size=6), st.sampled_from(["", "off", "s3://bucket/archive", "/archive"]), roles)
def test_processes_share_the_servers_and_the_archive_and_nothing_they_write(some: set[int], archive: str, role: Role) -> None:
    settings = Settings(home=HOME, archive=archive, instance="name").resolved()
    made = [settings_of(settings, name_of(role, number), settings.web_port + number) for number in sorted(some)]
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
    assert settings_of(settings, "worker", 7_001) == settings
    assert settings_of(settings, "worker-2", 7_001).web_advertised == second


def test_further_workers_get_the_next_free_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken = int(listening.getsockname()[1])
        settings = Settings(home=HOME, web_port=min(taken, 65_000) - 1)
        found = free_ports(settings, {"worker-2", "worker-3", "worker-4"}, [taken + 1])
    assert list(found) == ["worker-2", "worker-3", "worker-4"]
    assert len({*found.values(), settings.web_port, taken, taken + 1}) == 6
    with pytest.raises(ConfigError, match="RIFFLE_WEB_PORT"):
        free_ports(Settings(home=HOME, web_port=65_535), {"worker-2"})


def test_servers_ports_are_left_to_them() -> None:
    settings = Settings(home=HOME, web_port=20_001, kafka_port=20_002, controller_port=20_003, redis_port=20_004)
    assert not set(free_ports(settings, {"worker-2", "ranking"}).values()) & {20_001, 20_002, 20_003, 20_004}


def test_a_part_of_each_worker_has_its_settings(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    found = parts_of(settings, {"worker": 0, "worker-2": 7_002, "worker-3": 7_003})
    assert [part.name for part in found] == ["worker", "worker-2", "worker-3"]
    given_to = [part.settings for part in found if isinstance(part, PartProcess)]
    assert given_to == [settings, settings_of(settings, "worker-2", 7_002), settings_of(settings, "worker-3", 7_003)]


def test_rows_of_workers_that_do_not_run_are_named(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    for number in (2, 3):
        (tmp_path / "workers" / str(number) / "data" / "tables" / "users" / "0").mkdir(parents=True)
    (tmp_path / "workers" / "4" / "data" / "tables").mkdir(parents=True)
    (tmp_path / "workers" / "odd").mkdir()
    assert list(left_over(settings, {"worker", "worker-2"})) == ["worker-3"], "worker 4 has no rows"
    assert left_over(settings, {"worker", "worker-2", "worker-3"}) == {}


def test_ranking_processes_have_homes_and_ports_of_their_own(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, ranking="remote")
    assert settings.rank_port not in free_ports(settings, {"worker-2", "worker-3"}).values()
    found = parts_of(settings, {"ranking": 7_001, "ranking-2": 7_002, "worker": 0})
    assert [part.name for part in found] == ["ranking", "ranking-2", "worker"]
    first, second, worker = (part for part in found if isinstance(part, PartProcess))
    assert (first.settings.rank_port, second.settings.rank_port) == (7_001, 7_002)
    assert first.address == "http://127.0.0.1:7001"
    assert list(first.command[-2:]) == ["--role", "ranking"]
    assert worker.settings == settings
    for part in (first, second):
        part.daemon.record(os.getpid(), part.address)
    assert running(settings) == ["ranking", "ranking-2"]
