"""Answering requests. Every accepted request gets exactly one terminal answer.

There are two exceptions: a reply whose send fails is not repeated, and a worker that dies before the commit of the offset
answers again after its restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from agents.cores import cores
from agents.metrics import Metrics
from agents.partitions.copies import Found
from agents.partitions.users import UserPartition, dead_letter
from agents.requests.clock import Clock
from agents.requests.impressions import impression
from agents.requests.offsets import Offsets
from agents.requests.outbox import Outbox, Producer, Queued
from agents.requests.parsing import Accepted, Listing, Parser, Refused, asks_for_users
from agents.requests.ranking import Pending, Ranking, threaded
from agents.requests.remote import Remote
from agents.requests.replies import Replies
from agents.requests.traced import over_http, over_kafka, replying
from agents.requests.waiting import Waiting
from agents.web.protocol import Wanted, always
from models.pipeline.driving import Aside
from models.pipeline.pipeline import CandidatePipeline
from schemas.codec import Registry
from schemas.errors import NotReady, RiffleError
from schemas.kernels import partition_of
from schemas.records import Request, Slate, UserPage
from schemas.settings import Settings
from streams.kafka.chunks import Chunk
from streams.kafka.native.producer import NativeProducer
from streams.tracing import Span, Tracing

__all__ = ["Recommend"]

log = logging.getLogger(__name__)

OUTPUT_PAUSE_S = 0.02
"Seconds that impressions and dead letters wait, so that replies are on their way before them."
MAX_LISTINGS = 8
"Maximum number of queries for users under way: each holds up the flush of its partition for a moment."
MARGIN_S = 0.01
"Seconds before the deadline, in addition to the time for ranking, at which a request stops waiting for an event."
SYSTEM = Clock()


class Recommend:
    """Accepts requests, makes each wait for its event and its turn, and sends its answer and impression."""

    def __init__(  # noqa: PLR0913 - the parts of a worker that requests touch
        self,
        settings: Settings,
        pipeline: CandidatePipeline,
        partitions: Mapping[int, UserPartition],
        producer: Producer,
        metrics: Metrics,
        registry: Registry | None = None,
        clock: Clock = SYSTEM,
        partitioner: Callable[[bytes, int], int] = partition_of,
        *,
        outputs: Producer | None = None,
        aside: Aside | None = None,
        remote: Remote | None = None,
        tracing: Tracing | None = None,
        shown: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        """`partitioner`: returns the partition of a key, given the number of partitions. `aside` and `remote`: as for
        `Ranking`. `shown` is called with the ids of every slate that is logged as shown.

        `producer` sends replies, `outputs` impressions and dead letters. With one producer for both, replies would wait for the
        acknowledgement of impressions, because aiokafka has one request of a producer in flight to each broker.
        """
        self._settings = settings
        self._tracing = tracing
        self._shown = shown
        self._partitions = partitions
        self._metrics = metrics
        self._clock = clock.monotonic
        self._partitioner = partitioner
        self._parser = Parser(settings, partitions, registry, clock, self.partition_of)
        self._ranking = Ranking(
            pipeline, partitions, metrics, clock, self._show, aside, remote, threaded=threaded(settings.graphs, cores())
        )
        at_once = producer.send_at_once if isinstance(producer, NativeProducer) else None
        self._outbox = Outbox(producer, metrics, self._ranking.backlog.reply.learn, clock.monotonic, at_once=at_once)
        self._outputs = Outbox(outputs or producer, metrics, clock=clock.monotonic, pause_s=OUTPUT_PAUSE_S)
        self._replies = Replies(self._outbox, registry)
        self.recent = self._ranking.recent
        "The newest answered requests."
        self._waiting = Waiting()
        self._offsets = Offsets()
        self._listings = 0
        "Number of queries for users that are under way."

    def partition_of(self, user_id: str) -> int:
        """Return the partition that holds a user's state, by the default partitioner, regardless of the request's own."""
        return self._partitioner(user_id.encode(), self._settings.partitions)

    @property
    def waiting(self) -> int:
        """Number of requests that wait for a batch."""
        return len(self._ranking.backlog)

    def committable(self) -> dict[int, int]:
        """Return the next offset to read by partition of the requests topic. Every request below it is answered."""
        return self._offsets.committable()

    def forget(self, partition: int) -> None:
        """Remove a partition that may go to another worker. Call `drain` before."""
        self._offsets.forget(partition)

    async def run(self) -> None:
        """Rank waiting requests and send their answers, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._outbox.run())
            group.create_task(self._outputs.run())
            group.create_task(self._ranking.run())

    def on_chunk(self, chunk: Chunk) -> None:
        """Accept a chunk of requests. One whose schema is not known yet waits for it in a task of its own."""
        self._offsets.take_in(chunk)
        for index in range(len(chunk)):
            if self._parser.lacks_schema(chunk, index) and not self._waiting.crowded:
                self._waiting.spawn(self._take_in_later(chunk, index))
            else:
                self._take_in(chunk, index)

    async def recommend(
        self, request: Request, partition: int, deadline_s: float, found: Found | None = None, wanted: Wanted = always
    ) -> Slate:
        """Answer one request of this worker's own HTTP interface within `deadline_s` seconds.

        `found`: the user's record, if it does not come from the ready owner of the partition. The request then does not wait
        for the event of its token. A slate that is not `wanted` any more when it is ready leaves no impression.

        Raises:
            RiffleError: the terminal error.
        """
        done: asyncio.Future[Slate | RiffleError] = asyncio.get_running_loop().create_future()
        now = self._clock()

        def settle(answer: Slate | RiffleError) -> None:
            if not done.done():  # whoever asked may have left
                done.set_result(answer)

        def is_wanted() -> bool:
            return not done.done() and wanted()

        span = over_http(self._tracing, request)
        pending = Pending(
            request, partition, now + deadline_s, settle, now, near=True, found=found, wanted=is_wanted, span=span
        )
        if found is None:
            self._queue(pending)
        else:
            self._submit(pending, found.reflects(request.after))
        answer = await done
        if isinstance(answer, Slate):
            return answer
        raise answer

    async def drain(self, timeout_s: float = 5.0) -> None:
        """Answer all pending requests before partitions may go to another worker; those that wait for an event as stale.

        Otherwise they would hold back the committed offset, and the next owner would answer all later requests again.
        """
        until = self._clock() + timeout_s
        await self._waiting.wake(timeout_s)
        await self._ranking.idle(max(until - self._clock(), 0.001))
        for outbox in (self._outbox, self._outputs):
            await outbox.drained(max(until - self._clock(), 0.001))

    async def close(self) -> None:
        """Send the spans that are left, if requests are traced. Nothing may be asked afterwards."""
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.stop)

    async def _take_in_later(self, chunk: Chunk, index: int) -> None:
        """Accept a request when the registry has provided its schemas; other requests do not wait for it."""
        await self._parser.wait_for_schema(chunk, index)
        self._take_in(chunk, index)

    def _take_in(self, chunk: Chunk, index: int) -> None:
        answered = self._offsets.answered(chunk, index)
        try:
            if asks_for_users(chunk.headers[index]):
                self._take_in_listing(chunk, index, answered)
                return
            parsed = self._parser.parse(chunk, index)
            if isinstance(parsed, Refused):
                self._refuse(parsed, chunk, index, answered)
                return
            self._outbox.expect(parsed.address.topic)
        except Exception:
            log.exception("request at %s-%d, offset %d failed", chunk.topic, chunk.partition, chunk.offsets[index])
            self._metrics.requests.add(outcome="lost")
            answered()
            return
        self._accept(parsed, answered, over_kafka(self._tracing, parsed.request, chunk.headers[index]))

    def _take_in_listing(self, chunk: Chunk, index: int, answered: Callable[[], None]) -> None:
        parsed = self._parser.parse_listing(chunk, index)
        if isinstance(parsed, Refused):
            self._refuse(parsed, chunk, index, answered)
            return
        self._outbox.expect(parsed.address.topic)
        if self._listings >= MAX_LISTINGS:
            message = f"{MAX_LISTINGS} queries for users are under way: try again"
            self._replies.send(parsed.address, NotReady("busy", message), answered)
            return
        self._listings += 1
        self._waiting.spawn(self._list(parsed, chunk.partition, answered))

    async def _list(self, listing: Listing, number: int, answered: Callable[[], None]) -> None:
        """Answer a query of another worker for users of partition `number`."""
        answer: UserPage | RiffleError
        try:
            partition = self._partitions.get(number)
            if partition is None:
                raise NotReady("not_ready", f"partition {number} is not restored here yet: try again")
            answer = await partition.page(listing.query)
        except RiffleError as error:
            answer = error
        except Exception:
            log.exception("a query for users of partition %d failed", number)
            answer = RiffleError("internal", "the query failed; the worker's log says why")
        finally:
            self._listings -= 1
        self._replies.send(listing.address, answer, answered)

    def _refuse(self, refused: Refused, chunk: Chunk, index: int, answered: Callable[[], None]) -> None:
        """Answer a malformed request with its error; it goes to the dead letters if no answer can reach its sender."""
        error = refused.error
        self._metrics.requests.add(outcome="malformed", code=error.code)
        if error.code == "wrong_partition":
            self._metrics.wrong_partition.add(topic="requests")
        if refused.address is not None:
            self._replies.send(refused.address, error, answered)
            return
        letter = dead_letter(self._settings, chunk, index, error.code, error.message)
        self._outputs.put(Queued(letter.topic, letter.key, letter.value or b"", (), "dead_letter", answered))

    def _accept(self, accepted: Accepted, answered: Callable[[], None], span: Span | None) -> None:
        def reply(answer: Slate | RiffleError) -> None:
            self._replies.send(accepted.address, answer, replying(span, answered))

        self._queue(
            Pending(
                accepted.request,
                accepted.partition,
                accepted.deadline,
                reply,
                self._clock(),
                address=accepted.address,
                answered=answered,
                span=span,
            )
        )

    def _queue(self, pending: Pending) -> None:
        """Make a request wait for the event of its token, unless it is applied, and then for its turn."""
        after, partition = pending.request.after, self._partitions.get(pending.partition)
        if after is None or partition is None or (after.partition == pending.partition and partition.reflects(after)):
            self._ranking.submit(pending)
        else:
            self._waiting.until(partial(self._reflected, pending), partial(self._submit, pending))

    def _submit(self, pending: Pending, reflected: bool) -> None:
        pending.stale = not reflected
        self._ranking.submit(pending)

    async def _reflected(self, pending: Pending) -> bool:
        """Wait for the event of the request's token as long as the deadline allows; returns whether it is applied."""
        after = pending.request.after
        partition = self._partitions.get(pending.partition)
        if after is None:
            return True
        if partition is None or after.partition != pending.partition or self._waiting.crowded:
            return False
        margin = MARGIN_S + 2 * self._ranking.backlog.seconds()
        return await partition.wait_for(after, pending.deadline - margin - self._clock())

    def _show(self, slate: Slate) -> None:
        self._outputs.put(impression(slate, self._settings.topic("impressions")))
        if self._shown is not None:
            self._shown([item.item_id for item in slate.items])
