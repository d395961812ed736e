"""The interface between the HTTP routes and the worker behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from agents.metrics import Metrics
from agents.web.console import Console
from agents.web.operator import Operator
from schemas.records import Interaction, Item, Request, Slate, SlateItem, UserPage, UserQuery
from schemas.rules import RuleSet

__all__ = ["Service", "Token", "Wanted", "always"]

Token = Mapping[str, int]
"`partition` and `offset` of a stored event; a request that carries it as `after` reflects that event."
Wanted = Callable[[], bool]
"Returns whether the client of a request still waits for the answer, as far as this worker knows."


def always() -> bool:
    """Return True: for requests of which nobody can know whether the client waits."""
    return True


class Service(Protocol):
    """The external interface of a worker. Exceptions outside of `schemas.errors` are answered as internal errors."""

    @property
    def metrics(self) -> Metrics:
        """Metrics in which the HTTP interface counts."""

    @property
    def console(self) -> Console:
        """What the web page shows of the worker."""

    @property
    def operator(self) -> Operator:
        """What an operator may do from the web page."""

    async def recommend(self, request: Request, deadline_ms: int | None = None, wanted: Wanted = always) -> Slate:
        """Return the slate for a request; `deadline_ms` None selects the default of the settings.

        A slate that is not `wanted` any more when it is ready is not logged as shown.

        Raises:
            DeadlineExceeded: there was no answer in time.
            NotReady: ranking failed, or Kafka does not answer.
        """

    async def recommend_here(self, request: Request, deadline_ms: int | None = None, wanted: Wanted = always) -> Slate:
        """Return the slate for a request of another worker, only from rows that this worker holds, as owner or not.

        `wanted`: as for `recommend`.

        Raises:
            DeadlineExceeded: there was no answer in time.
            NotReady: code `not_held`, this worker holds no rows of the user's partition.
        """

    def similar(self, item_id: str, k: int) -> Sequence[SlateItem]:
        """Return the `k` items most similar to an item, best first.

        Raises:
            BadItem: code `not_found`.
        """

    async def user(self, user_id: str) -> Mapping[str, object]:
        """Return a user's summary as JSON values.

        Raises:
            BadInput: code `not_found`, for a user without events, or one who was erased.
            NotReady: the user's partition is not available.
        """

    async def users(self, partition: int, query: UserQuery) -> UserPage:
        """List users of a partition.

        Raises:
            BadRequest: code `invalid_field`, there is no such partition.
            NotReady: the partition is not available.
            DeadlineExceeded: its owner did not answer in time.
        """

    async def erase(self, user_id: str) -> Token:
        """Erase a user; requests with the token as `after` no longer use the user's events. An unknown user is no error."""

    async def send_events(self, events: Sequence[Interaction]) -> Sequence[Token]:
        """Store events; returns one token per event, in their order, when the broker has acknowledged all of them.

        After a failure some may be stored. Sending them again is safe, because `event_id` deduplicates.
        """

    async def put_item(self, item: Item) -> None:
        """Store or replace a catalogue entry; returns when the broker has acknowledged it."""

    async def delete_item(self, item_id: str) -> None:
        """Remove a catalogue entry; returns when the broker has acknowledged it. An unknown item is not an error."""

    def item(self, item_id: str) -> Item:
        """Return a catalogue entry as this worker has it.

        Raises:
            BadItem: code `not_found`.
        """

    @property
    def release(self) -> str:
        """Name of the serving release, `none` without one."""

    @property
    def refused(self) -> Mapping[str, str]:
        """Releases that were announced but refused, with the reason."""

    @property
    def warnings(self) -> Mapping[str, str]:
        """Findings that do not prevent answers, by name."""

    def rules(self) -> Mapping[str, object]:
        """Return the serving rule set, with what each rule matches, and why the newest set is refused, if it is."""

    async def preview_rules(self, rules: RuleSet, request: Request | None, *, here: bool = False) -> Mapping[str, object]:
        """Return what each rule matches and, given a request, its slates with the serving and with these rules.

        `here`: the owner of another user's partition is not asked.

        Raises:
            NotReady: the owner of the user's partition cannot be asked, or it is being restored there.
        """

    def stuck(self) -> Mapping[str, float]:
        """Return the partitions that have waiting work and make no progress, and for how many seconds."""

    async def tables(self, *, digests: bool = False) -> Sequence[Mapping[str, object]]:
        """List the table partitions that this worker owns or holds as standby; with `digests` also hashes over their rows."""

    def ready(self) -> tuple[bool, Mapping[str, object]]:
        """Return whether this worker is ready now, and the missing parts if not."""

    def render_metrics(self) -> str:
        """Format all metrics of the worker, including the HTTP interface's, in Prometheus' text format."""
