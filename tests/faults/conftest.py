"""Fixture: a worker for each fault test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from fault_trial import Trial

from schemas.settings import Settings
from streams.embedded.kafka import EmbeddedKafka
from streams.kafka.topics import ensure_topics


@pytest.fixture
async def trial(stack: Settings, fresh: Settings, worker_of: Any) -> AsyncIterator[Trial]:
    """A ready worker with its own topics. Its session timeout is 6 s, and its liveness fails after 20 s without progress."""
    made = Trial(replace(fresh, session_timeout_s=6.0, stuck_s=20.0, instance="one"), EmbeddedKafka(stack), worker_of)
    await ensure_topics(made.settings)
    await made.sent.start()
    yield made
    await made.sent.stop()
