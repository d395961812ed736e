"""Shared by all fuzzers: the number of cases, and the check that an invariant can fail."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, find, settings
from hypothesis.errors import NoSuchExample
from hypothesis.strategies import SearchStrategy

MORE = int(os.environ.get("FUZZ_CASES", "0"))
"Cases of each fuzzer in `make fuzz`, other ones at each run. In `make test` there are 100, always the same ones."
fuzz = settings(
    max_examples=MORE or 100,
    derandomize=not MORE,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.large_base_example],
)
"Decorator of a fuzzer, above `@given`."


def must_find(invariant: Callable[[Any, Any], None], broken: Any, cases: SearchStrategy[Any], most: int = 2_000) -> Any:
    """The smallest case in which `invariant(broken, case)` fails; the test fails when there is none among `most`."""

    def fails(case: Any) -> bool:
        try:
            invariant(broken, case)
        except Exception:
            return True
        return False

    try:
        return find(cases, fails, settings=settings(max_examples=most, deadline=None, database=None))
    except NoSuchExample:
        pytest.fail(f"{invariant.__name__} holds for {broken!r}, which is broken on purpose")
