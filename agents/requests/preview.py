"""Slates for people: with rules that do not serve, beside the slate with those that do, or with a trace.

Nothing is published or counted as a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agents.partitions.users import UserPartition
from models.pipeline.driving import run_aside
from models.pipeline.pipeline import CandidatePipeline
from models.pipeline.rules.book import RuleBook
from models.pipeline.slot import ModelSlot
from models.pipeline.stages import Observer
from models.pipeline.trace import Trace
from models.state.users import Users
from schemas.records import AsOf, Request, Slate

__all__ = ["previewed", "traced"]


async def previewed(
    pipeline: CandidatePipeline, partition: UserPartition, request: Request, books: Sequence[RuleBook | None]
) -> list[Slate]:
    """Answer one request once with each of the rule sets; None stands for the serving rules."""
    users, as_of = Users.read(partition.rows([request.user_id])), [partition.as_of]
    apart = pipeline.observed(Observer())  # with counters of its own
    return [await _answered(apart, users, request, as_of, book) for book in books]


async def _answered(
    pipeline: CandidatePipeline, users: Users, request: Request, as_of: Sequence[AsOf | None], book: RuleBook | None
) -> Slate:
    """Run the pipeline's steps here, and the graphs in another thread."""
    (slate,) = await run_aside(pipeline.steps([request], users, as_of, rules=book), asyncio.to_thread)
    return slate


async def traced(
    pipeline: CandidatePipeline, partition: UserPartition, request: Request, slot: ModelSlot | None = None
) -> tuple[Slate, Trace]:
    """Answer one request with the release of `slot`, or the serving one, and observe how."""
    users, as_of = Users.read(partition.rows([request.user_id])), [partition.as_of]
    trace = Trace(pipeline.items, pipeline.source_names)
    return await _answered(pipeline.observed(trace, slot), users, request, as_of, None), trace
