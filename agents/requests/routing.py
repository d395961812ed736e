"""The choice of the rows that answer a request over HTTP: the owner's, a standby copy's, a mirrored summary's, or none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from agents.metrics import Metrics
from agents.partitions.copies import NO_STATE, STANDBY, Found
from agents.partitions.users import UserPartition
from agents.requests.clock import Clock
from agents.requests.recommend import SYSTEM
from agents.web.peers import PeerAway
from agents.web.protocol import Wanted, always
from schemas.errors import DeadlineExceeded, NotReady, TransientError
from schemas.records import Request, Slate
from streams.kafka.assignor import Holders

__all__ = ["Answers", "Asks", "Elsewhere", "Finds", "Others", "Routing", "others"]

SHARE, SHARE_AFTER = 0.5, 0.75
"""Share of the remaining time that another worker gets, without and with a token: with one, the owner may have to wait for an
event. The rest is for an answer without it."""
KEPT = 0.1
"Share of the whole time that is kept for ranking here, however many workers do not answer."
LEAST_S = 0.001
"Seconds below which no worker is asked."
MOST_S, LONG_SHARE = 1.0, 0.25
"""Maximum number of seconds that another worker gets without a token, or this share of the time if that is more: who waits for
long, as for a list of requests, would rather have the owner's answer than an early one."""
PAUSE_S = 0.02
"Seconds between two attempts while partitions move between workers that live."
MOST_PAUSE_S = 0.5
"Maximum of these seconds; the pause doubles with each attempt of a request."
MOVING = frozenset({"not_ready", "not_held"})
"Codes of a worker that may hold the rows in a moment. Any other failure would be the same again."


def _patience(seconds: float) -> float:
    return min(seconds * SHARE, max(MOST_S, seconds * LONG_SHARE))


class Answers(Protocol):
    """Ranks here, as `Recommend`."""

    async def recommend(
        self, request: Request, partition: int, deadline_s: float, found: Found | None = None, wanted: Wanted = always
    ) -> Slate:
        """See `Recommend.recommend`."""


class Finds(Protocol):
    """Finds users in rows that are held here, as `Copies`."""

    def find(self, partition: int, user_id: str) -> Found | None:
        """See `Copies.find`."""


class Asks(Protocol):
    """Asks another worker, as `Peers`."""

    async def ask(self, address: str, request: Request, within_s: float) -> Slate:
        """See `Peers.ask`."""


@dataclass(frozen=True, slots=True)
class Others:
    """The other workers that hold a partition and can be asked, as `host:port`."""

    owner: str | None
    "None if its address is not known, or it is this worker."
    standbys: tuple[str, ...]
    here: bool
    "Whether the owner is this worker, according to the group."


def others(holders: Holders, own: str, reachable: Callable[[str | None], str | None]) -> Others:
    """Return the workers to ask. `own`: what this worker advertises. `reachable`: returns `host:port` of what a worker
    advertises, None if it cannot be reached from here."""
    here = holders.owner == own != ""
    owner = None if here else reachable(holders.owner)
    places = [reachable(address) for address in holders.standbys if address not in {own, holders.owner}]
    return Others(owner, tuple(place for place in places if place is not None), here)


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Other sources of answers and of users' records than this worker's rows."""

    others: Callable[[int], Others]
    "Returns the other workers that hold a partition."
    peers: Asks
    over_kafka: Callable[[Request, float], Awaitable[Slate]]
    "Asks an owner whose address is not known, within seconds."
    mirrored: Callable[[str, float], Awaitable[Found | None]]
    "Returns a user's mirrored record, within seconds."


class Routing:
    """Answers requests over HTTP for all users, as long as one worker lives.

    The owner of the user's partition answers, if it is ready. Else a worker that holds other rows of the partition answers
    from these: a standby copy, or rows on which a new owner builds. Else the answer is that for an unknown user. An owner that
    does not answer gets a share of the time only.
    """

    def __init__(
        self,
        recommend: Answers,
        partitions: Mapping[int, UserPartition],
        copies: Finds,
        elsewhere: Elsewhere,
        metrics: Metrics,
        clock: Clock = SYSTEM,
    ) -> None:
        self._recommend = recommend
        self._partitions = partitions
        self._copies = copies
        self._elsewhere = elsewhere
        self._metrics = metrics
        self._clock = clock.monotonic

    async def recommend(self, request: Request, partition: int, deadline_s: float, wanted: Wanted = always) -> Slate:
        """Return a slate from the best rows that can be reached within `deadline_s` seconds.

        Raises:
            DeadlineExceeded: the time is too short, or too many requests wait here.
            NotReady: ranking failed.
            BadInput: another worker refuses the request.
        """
        until = self._clock() + deadline_s
        patience, kept = self._clock() + self._share(request, deadline_s), deadline_s * KEPT
        if partition not in self._partitions:
            self._metrics.requests_forwarded.add()
        pause_s = PAUSE_S
        while True:
            slate, moving = await self._from_owner(request, partition, until, kept, wanted)
            if slate is not None:
                return slate
            found = self._copies.find(partition, request.user_id)
            if found is not None:
                return await self._from(found, request, partition, until, wanted)
            slate, held = await self._from_standbys(request, partition, until, kept)
            if slate is not None:
                return slate
            if not (moving or held) or self._clock() + pause_s > patience:
                break
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MOST_PAUSE_S)
        found = await self._elsewhere.mirrored(request.user_id, max((until - self._clock()) * SHARE / 2, 0.0))
        return await self._from(found or Found(None, None, NO_STATE), request, partition, until, wanted)

    async def recommend_here(self, request: Request, partition: int, deadline_s: float, wanted: Wanted = always) -> Slate:
        """Return a slate to another worker, only from rows that are held here.

        Raises:
            NotReady: code `not_held`, no rows of this partition are held here.
            RiffleError: as `Recommend.recommend`.
        """
        until = self._clock() + deadline_s
        slate = await self._from_own(request, partition, until, wanted)
        if slate is not None:
            return slate
        found = self._copies.find(partition, request.user_id)
        if found is None:
            raise NotReady("not_held", f"no rows of partition {partition} are held here")
        return await self._recommend.recommend(request, partition, until - self._clock(), found, wanted)

    def _share(self, request: Request, seconds: float) -> float:
        """Return how many of these seconds another worker gets."""
        return _patience(seconds) if request.after is None else seconds * SHARE_AFTER

    def _is_ready(self, partition: int) -> bool:
        part = self._partitions.get(partition)
        return part is not None and part.state.ready.is_set()

    async def _from_own(self, request: Request, partition: int, until: float, wanted: Wanted) -> Slate | None:
        """Return the answer of the ready owner, if it is this worker."""
        if not self._is_ready(partition):
            return None
        try:
            return await self._recommend.recommend(request, partition, until - self._clock(), wanted=wanted)
        except NotReady:
            if self._is_ready(partition):
                raise
            return None  # a rebalance took it while the request waited

    async def _from_owner(
        self, request: Request, partition: int, until: float, kept: float, wanted: Wanted
    ) -> tuple[Slate | None, bool]:
        """Return the owner's answer, if it gives one, and whether the partition is moving to a worker that lives."""
        if partition in self._partitions:
            return await self._from_own(request, partition, until, wanted), True
        known, left_s = self._elsewhere.others(partition), until - self._clock()
        within_s = min(self._share(request, left_s), left_s - kept)
        if known.here or within_s < LEAST_S:
            return None, known.here  # the group has assigned it to this worker, which is about to open it
        try:
            if known.owner is None:
                return await self._elsewhere.over_kafka(request, within_s), False
            return self._counted(await self._elsewhere.peers.ask(known.owner, request, within_s)), False
        except (PeerAway, DeadlineExceeded):
            return None, False
        except TransientError as error:
            return None, error.code in MOVING

    async def _from_standbys(self, request: Request, partition: int, until: float, kept: float) -> tuple[Slate | None, bool]:
        """Return a standby's answer, if one gives it, and whether one lives that may hold the rows soon."""
        lives = False
        for address in self._elsewhere.others(partition).standbys:
            left_s = until - self._clock()
            within_s = min(_patience(left_s), left_s - kept)
            if within_s < LEAST_S:
                break
            try:
                slate = await self._elsewhere.peers.ask(address, request, within_s)
                return self._counted(slate), False
            except (PeerAway, DeadlineExceeded):
                continue
            except TransientError as error:
                lives = lives or error.code in MOVING
        return None, lives

    def _counted(self, slate: Slate) -> Slate:
        """Count another worker's slate if it does not come from the ready owner."""
        if STANDBY in slate.degraded:
            self._metrics.requests_without_owner.add(rows=STANDBY)
        return slate

    async def _from(self, found: Found, request: Request, partition: int, until: float, wanted: Wanted) -> Slate:
        """Return the answer from a record that does not come from the ready owner."""
        self._metrics.requests_without_owner.add(rows=found.degraded)
        return await self._recommend.recommend(request, partition, until - self._clock(), found, wanted)
