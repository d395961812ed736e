"""Answering requests: every accepted request gets exactly one terminal answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import uuid
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, replace

import orjson

from agents.metrics import Metrics
from agents.partitions.users import UserPartition, dead_letter
from agents.requests.backlog import Backlog
from agents.requests.clock import Clock
from agents.requests.outbox import Letter, Outbox, Producer
from models.features.compute import SPEC
from models.pipeline.pipeline import CandidatePipeline
from schemas.codec import Framing, Headers, Registry, decode, encode, framing_of, header_of, schema_ids
from schemas.errors import BadRequest, DeadlineExceeded, NotReady, RiffleError, TransientError
from schemas.kernels import partition_of
from schemas.parsing import whole_number
from schemas.records import Request, Slate
from schemas.settings import Settings
from schemas.validation import MAX_ID_BYTES, request_from
from streams.kafka.chunks import Chunk
from streams.kafka.topics import TOPICS

__all__ = ["Recommend", "reply_body"]

log = logging.getLogger(__name__)

MARGIN_S = 0.01
"Kept back of a deadline when a request waits for an event, beside what ranking takes."
MAX_BACKLOG = 4_000
"Requests that may wait for ranking at once."
MAX_WAITING = 2_000
"Requests that may wait for their token at once; more are answered as stale."
MAX_BATCH, BATCH_S = 32, 0.02
"Requests ranked together, and for how long the worker may do nothing else, as far as it can tell beforehand."
PAUSE_S, PAUSES = 0.001, 20
"After a batch with more behind it: what else is ready has its turn first, for so many rounds of the event loop at most."
TOPIC_NAME = re.compile(rb"(?!__)(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")
MAX_CORRELATION_BYTES = 1_024
MAX_DEADLINE_MS = 60_000
SYSTEM = Clock()


@dataclass(slots=True)
class _Pending:
    request: Request
    partition: int
    deadline: float
    "On the monotonic clock, in seconds."
    reply: Callable[[Slate | RiffleError], None]
    stale: bool = False
    near: bool = False
    "Asked over this worker's own HTTP interface."


def reply_body(
    framing: Framing, user_id: str, answer: Slate | RiffleError, correlation_id: str, registry: Registry | None = None
) -> bytes:
    """A reply's value, encoded as the request was: JSON as Faust's `ask` reads it, or the Avro slate record."""
    if framing is Framing.JSON:
        value = answer.to_json() if isinstance(answer, Slate) else {"error": answer.to_json()}
        return orjson.dumps({"key": user_id, "value": value, "correlation_id": correlation_id})
    if isinstance(answer, Slate):
        datum = answer.to_json()
        for item in datum["items"]:  # type: ignore[attr-defined]
            if "explanation" in item:
                item["explanation"] = orjson.dumps(item["explanation"]).decode()
    else:
        datum = {"request_id": "", "user_id": user_id, "error": answer.to_json()}
    return encode("slate", {**datum, "correlation_id": correlation_id}, framing, registry)


def _reply_topic(headers: Headers, own: Collection[str]) -> bytes:
    """The topic that an answer goes to; raises BadRequest when nobody could hear it there."""
    topic = header_of(headers, "Faust-Ag-ReplyTo")
    if not topic:
        raise BadRequest("no_reply_to", "header Faust-Ag-ReplyTo is missing", "Faust-Ag-ReplyTo")
    if not TOPIC_NAME.fullmatch(topic) or topic.decode() in own:
        message = "not a topic that replies may go to: Riffle's own, or no valid name"
        raise BadRequest("invalid_reply_to", message, "Faust-Ag-ReplyTo")
    if len(header_of(headers, "Faust-Ag-CorrelationId") or b"") > MAX_CORRELATION_BYTES:
        message = f"the correlation id must have at most {MAX_CORRELATION_BYTES:,} bytes"
        raise BadRequest("invalid_field", message, "Faust-Ag-CorrelationId")
    return topic


def _budget_ms(headers: Headers, settings: Settings) -> int:
    given = header_of(headers, "deadline-ms")
    if not given:
        return settings.deadline_ms
    try:
        budget = whole_number(given.decode(errors="backslashreplace"))
    except ValueError as exc:
        raise BadRequest("invalid_field", f"deadline-ms {exc}", "deadline-ms") from exc
    if not 1 <= budget <= MAX_DEADLINE_MS:
        raise BadRequest("invalid_field", f"deadline-ms must lie in 1..{MAX_DEADLINE_MS}, is {budget}", "deadline-ms")
    return budget


class Recommend:
    """Batches what waits, runs the pipeline, sends replies and impressions."""

    def __init__(
        self,
        settings: Settings,
        pipeline: CandidatePipeline,
        partitions: Mapping[int, UserPartition],
        producer: Producer,
        metrics: Metrics,
        registry: Registry | None = None,
        clock: Clock = SYSTEM,
        partitioner: Callable[[bytes, int], int] = partition_of,
    ) -> None:
        """`partitioner`: the partition of a key, given the number of partitions."""
        self._settings = settings
        self._clock = clock
        self._partitioner = partitioner
        self._pipeline = pipeline
        self._partitions = partitions
        self._backlog: Backlog[_Pending] = Backlog(clock.monotonic, most=MAX_BACKLOG, batch=MAX_BATCH, batch_s=BATCH_S)
        self._outbox = Outbox(producer, metrics, self._backlog.reply.learn, clock.monotonic)
        self._metrics = metrics
        self._registry = registry
        self._waiting: set[asyncio.Task[None]] = set()
        self._later: dict[int, dict[asyncio.Task[None], asyncio.Event]] = {}
        "Per partition of the requests topic: requests that wait for an event, and what ends the wait."
        self._outstanding: dict[int, set[int]] = {}
        "Per partition of the requests topic: offsets whose answer is not sent yet."
        self._next: dict[int, int] = {}
        self._work = asyncio.Event()
        "Set while requests wait for ranking."
        self._idle = asyncio.Event()
        "The opposite."
        self._idle.set()
        self._own = frozenset(settings.topic(name) for name in TOPICS)

    def committable(self) -> dict[int, int]:
        """Per partition of the requests topic: the next offset to read, below which every request is answered."""
        return {p: min(self._outstanding.get(p) or (offset,)) for p, offset in self._next.items()}

    def forget(self, partition: int) -> None:
        """The partition may go to another worker; `drain` came before."""
        self._next.pop(partition, None)
        self._outstanding.pop(partition, None)

    async def on_chunk(self, chunk: Chunk) -> None:
        """Take in a chunk of requests: those that must wait for an event wait on their own, the others for their turn."""
        outstanding = self._outstanding.setdefault(chunk.partition, set())
        outstanding.update(chunk.offsets)
        self._next[chunk.partition] = chunk.last_offset + 1
        for index in range(len(chunk)):
            if self._lacks_schema(chunk, index) and len(self._waiting) <= MAX_WAITING:
                self._spawn(self._take_in_later(chunk, index))
            else:
                self._take_in(chunk, index)

    def _lacks_schema(self, chunk: Chunk, index: int) -> bool:
        """Whether the registry has to be asked for a schema before the request can be read, or its answer written."""
        if self._registry is None:
            return False
        wanted = schema_ids([chunk.values[index]], [chunk.headers[index]])
        try:
            for schema_id in wanted:
                self._registry.id_of("slate")
                self._registry.schema_of(schema_id)
        except TransientError:
            return True
        except KeyError:
            pass
        return False

    async def _take_in_later(self, chunk: Chunk, index: int) -> None:
        """Take a request in when the registry gave what it needs, or at half its deadline: others do not wait for it."""
        assert self._registry is not None
        with contextlib.suppress(BadRequest):
            left_s = _budget_ms(chunk.headers[index], self._settings) / 1000 - self._waited_s(chunk, index)
            wanted = schema_ids([chunk.values[index]], [chunk.headers[index]])
            await self._registry.ready({"slate", *wanted}, max(left_s / 2, 0.0))
        self._take_in(chunk, index)

    def _take_in(self, chunk: Chunk, index: int) -> None:
        try:
            pending = self._accept(chunk, index)
        except Exception:
            log.exception("request at %s-%d, offset %d failed", chunk.topic, chunk.partition, chunk.offsets[index])
            self._metrics.count("requests", outcome="lost")
            self._outstanding[chunk.partition].discard(chunk.offsets[index])
            return
        if pending is None:
            return
        after = pending.request.after
        partition = self._partitions.get(pending.partition)
        if after is None or partition is None or (after.partition == pending.partition and partition.reflects(after)):
            self._submit(pending)
        else:
            wake, later = asyncio.Event(), self._later.setdefault(chunk.partition, {})
            task = self._spawn(self._after(pending, wake))
            later[task] = wake
            task.add_done_callback(lambda done, later=later: later.pop(done, None))  # type: ignore[misc]

    def _submit(self, pending: _Pending) -> None:
        """Have a request answered in its turn, or at once with an error when its turn would come too late."""
        if self._backlog.offer(pending, pending.deadline, near=pending.near):
            self._work.set()
            self._idle.clear()
        else:
            waiting, expected_ms = len(self._backlog), self._backlog.seconds(near=pending.near) * 1e3
            message = f"{waiting} requests wait, an answer takes {expected_ms:.0f} ms: too long for this deadline"
            self._finish(pending, DeadlineExceeded("deadline_exceeded", message))

    async def run(self) -> None:
        """Rank what waits and send what is answered, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._outbox.run())
            group.create_task(self._rank_forever())

    async def _rank_forever(self) -> None:
        """Answer what waits, a batch at a time; between two batches events and other requests have their turn."""
        while True:
            await self._work.wait()
            started = self._clock.monotonic()
            batch, late = self._backlog.take()
            for pending in late:
                self._finish(
                    pending,
                    DeadlineExceeded(
                        "deadline_exceeded", "those before it take longer than expected: its turn would come too late"
                    ),
                )
            if batch:
                self._answer(batch)
            if len(self._backlog):
                await self._let_others()
            else:
                self._work.clear()
                self._idle.set()
            if batch:
                # with what came between: while requests wait, that too is time they have to expect
                self._backlog.cost.learn(len(batch), self._clock.monotonic() - started)
            if not len(self._backlog):
                await asyncio.sleep(0)

    async def _let_others(self) -> None:
        """Let requests come in and answers go out, until a round of the event loop has nothing to do."""
        for _ in range(PAUSES):
            before = self._clock.monotonic()
            await asyncio.sleep(PAUSE_S)
            if self._clock.monotonic() - before < 2 * PAUSE_S:
                return

    def _accept(self, chunk: Chunk, index: int) -> _Pending | None:
        """Parse one request; one that is malformed gets its error here, or goes to the dead letters if nobody can hear it."""
        headers = chunk.headers[index]
        correlation = header_of(headers, "Faust-Ag-CorrelationId") or b""
        key = (chunk.keys[index] or b"").decode(errors="replace")
        # made anew when the partition was let go meanwhile: then the next owner answers again
        outstanding, offset = self._outstanding.setdefault(chunk.partition, set()), chunk.offsets[index]

        def done() -> None:
            outstanding.discard(offset)

        framing, reply_to, request = Framing.JSON, b"", None
        try:
            unheard: BadRequest | None = None
            try:
                reply_to = _reply_topic(headers, self._own)
            except BadRequest as exc:
                unheard = exc
            value = chunk.values[index]
            if value is None:
                raise BadRequest("null_value", "a request needs a body")
            framing = framing_of(value, headers)
            datum, _ = decode("request", value, headers, self._registry)
            named = correlation.decode(errors="replace").encode()[:MAX_ID_BYTES].decode(errors="ignore")
            request = request_from(datum, request_id=named or uuid.uuid4().hex)
            if unheard is not None:
                raise unheard
            budget_ms = _budget_ms(headers, self._settings)
            partition = self.partition_of(request.user_id)
            if partition != chunk.partition and partition not in self._partitions:
                raise self._misplaced(chunk, index, request.user_id, partition)
        except RiffleError as error:
            self._metrics.count("requests", outcome="malformed", code=error.code)
            if framing is Framing.CONFLUENT and self._registry is None:
                framing = Framing.JSON  # without a registry there is no schema id to answer with
            if reply_to:
                self._replier(reply_to.decode(), correlation, framing, request.user_id if request else key, done)(error)
            else:
                letter = dead_letter(self._settings, chunk, index, error.code, error.message)
                self._outbox.put(Letter(letter.topic, letter.key, letter.value or b"", (), "dead_letter", done))
            return None
        self._outbox.expect(reply_to.decode())
        send = self._replier(reply_to.decode(), correlation, framing, request.user_id, done)
        return _Pending(request, partition, self._clock.monotonic() - self._waited_s(chunk, index) + budget_ms / 1000, send)

    def _waited_s(self, chunk: Chunk, index: int) -> float:
        """Seconds since the request was stamped; a clock that is ahead gives no longer time than asked for."""
        return max(self._clock.wall() - chunk.timestamps[index] / 1000, 0.0)

    def _misplaced(self, chunk: Chunk, index: int, user_id: str, partition: int) -> BadRequest:
        """Why this worker cannot answer, nor ever will: the record went to another worker than the person's."""
        if chunk.keys[index] != user_id.encode():
            return BadRequest("key_mismatch", "the record's key must be the user_id: it finds the worker that answers", "key")
        self._metrics.count("wrong_partition", topic="requests")
        message = (
            f"the user_id belongs to partition {partition} of {self._settings.partitions}, the request came by "
            f"{chunk.partition}: have the producer partition by murmur2 (librdkafka: partitioner=murmur2_random)"
        )
        return BadRequest("wrong_partition", message, "key")

    def partition_of(self, user_id: str) -> int:
        """Partition that holds a person's state, whatever partition a request came by: the default partitioner's choice."""
        return self._partitioner(user_id.encode(), self._settings.partitions)

    def _replier(
        self, topic: str, correlation: bytes, framing: Framing, user_id: str, done: Callable[[], None]
    ) -> Callable[[Slate | RiffleError], None]:
        def reply(answer: Slate | RiffleError) -> None:
            named, used = correlation.decode(errors="replace"), framing
            try:
                body = reply_body(used, user_id, answer, named, self._registry)
            except RiffleError as exc:  # the registry does not answer: better a reply in another encoding than none
                log.warning("a reply as %s failed: %s", used, exc.message)
                used = Framing.JSON
                body = reply_body(used, user_id, answer, named)
            headers = [("Faust-Ag-CorrelationId", correlation)]
            if used is Framing.JSON:
                headers.append(("content-type", b"application/json"))
            self._outbox.put(Letter(topic, user_id.encode(), body, headers, "reply", done))

        return reply

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return task

    async def _after(self, pending: _Pending, wake: asyncio.Event) -> None:
        reflected, ended = asyncio.create_task(self._reflected(pending)), asyncio.create_task(wake.wait())
        await asyncio.wait({reflected, ended}, return_when=asyncio.FIRST_COMPLETED)
        pending.stale = not (reflected.done() and reflected.result())
        reflected.cancel()
        ended.cancel()
        self._submit(pending)

    async def _reflected(self, pending: _Pending) -> bool:
        after = pending.request.after
        partition = self._partitions.get(pending.partition)
        if after is None:
            return True
        if partition is None or after.partition != pending.partition or len(self._waiting) > MAX_WAITING:
            return False
        margin = MARGIN_S + 2 * self._backlog.seconds()
        return await partition.wait_for(after, pending.deadline - margin - self._clock.monotonic())

    async def recommend(self, request: Request, partition: int, deadline_ms: int) -> Slate:
        """Answer one request of this worker's own HTTP interface.

        Raises:
            RiffleError: the terminal error.
        """
        done: asyncio.Future[Slate | RiffleError] = asyncio.get_running_loop().create_future()
        pending = _Pending(request, partition, self._clock.monotonic() + deadline_ms / 1000, done.set_result, near=True)
        pending.stale = not await self._reflected(pending)
        self._submit(pending)
        answer = await done
        if isinstance(answer, Slate):
            return answer
        raise answer

    def _answer(self, batch: list[_Pending]) -> None:
        """Answer each of a batch, exactly once, with a slate or an error."""
        alive: list[_Pending] = []
        for pending in batch:
            partition = self._partitions.get(pending.partition)
            if partition is None or not partition.state.ready.is_set():
                self._finish(pending, NotReady("not_ready", "the user's partition is not restored here yet: try again"))
            else:
                alive.append(pending)
        if not alive:
            return
        try:
            users = [self._partitions[p.partition].lookup([p.request.user_id])[0] for p in alive]
            as_of = [self._partitions[p.partition].as_of for p in alive]
            slates = self._pipeline.run([p.request for p in alive], users, as_of)
        except Exception:
            log.exception("the pipeline failed for %d requests", len(alive))
            for pending in alive:
                self._finish(pending, NotReady("internal", "ranking failed; the worker's log says why"))
            return
        for pending, slate in zip(alive, slates, strict=True):
            degraded = (*slate.degraded, "stale") if pending.stale else slate.degraded
            final = replace(slate, degraded=degraded)
            self._finish(pending, final)
            self._impression(final)

    def _finish(self, pending: _Pending, answer: Slate | RiffleError) -> None:
        outcome = answer.code if isinstance(answer, RiffleError) else "degraded" if answer.degraded else "slate"
        self._metrics.count("requests", outcome=outcome)
        pending.reply(answer)

    def _impression(self, slate: Slate) -> None:
        as_of = slate.to_json()["as_of"]
        datum = {
            "request_id": slate.request_id,
            "user_id": slate.user_id,
            "event_time": slate.as_of.event_time if slate.as_of else 0,
            "release": slate.release,
            "arm": slate.arm,
            "feature_spec": "none" if slate.release == "none" else SPEC,
            "as_of": as_of,
            "items": [
                {
                    "item_id": item.item_id,
                    "position": position,
                    "score": item.score,
                    "propensity": 1.0,
                    "sources": list(item.sources),
                    "features": [float(value) for value in item.features],
                }
                for position, item in enumerate(slate.items)
            ],
        }
        topic = self._settings.topic("impressions")
        self._outbox.put(Letter(topic, slate.user_id.encode(), encode("impression", datum), (), "impression"))

    async def drain(self, timeout_s: float = 5.0) -> None:
        """Answer all that is under way, before partitions may go to another worker; those that wait for an event as stale.

        Left to the next owner they would be answered in time, but so would, a second time, all that came after them.
        """
        until = self._clock.monotonic() + timeout_s
        waiting = set(self._waiting)
        for later in self._later.values():
            for wake in later.values():
                wake.set()
        if waiting:
            await asyncio.wait(waiting, timeout=timeout_s)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), max(until - self._clock.monotonic(), 0.001))
        await self._outbox.drained(max(until - self._clock.monotonic(), 0.001))
