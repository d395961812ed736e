"""What the web page shows of a worker: the interface between its routes and the worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from schemas.records import Request

__all__ = ["Console"]


class Console(Protocol):
    """Reads a worker for people. All methods are bounded in time and size, and nothing is counted as a request."""

    def live(self, since: int) -> Mapping[str, object]:
        """Return the worker's state now, and its samples after the first `since` ones."""

    def pipeline(self) -> Mapping[str, object]:
        """Return what flowed through each stage of the pipeline since the start: sums."""

    def recent(self, most: int) -> Sequence[Mapping[str, object]]:
        """Return the newest answered requests of this worker, newest first."""

    async def explain(self, request: Request, release: str | None = None, *, here: bool = False) -> Mapping[str, object]:
        """Answer a request with its trace: `{"slate", "trace", "waited_ms"}`. Nothing is logged as shown.

        `release` answers instead of the serving one. `here`: another worker is not asked.

        Raises:
            BadRequest: the folder of the user's owner has no such release, or it cannot be used.
            NotReady: the owner of the user's partition cannot be asked, is restoring it, or has too many such requests.
        """

    def search(self, text: str, most: int) -> Sequence[Mapping[str, object]]:
        """Return items found by id or words, best first; the most popular ones without `text`."""

    def cards(self, item_ids: Sequence[str]) -> Sequence[Mapping[str, object]]:
        """Return the items of these ids that the catalogue holds, in this order, with their statistics."""

    def history(self, item_id: str, per: str) -> Mapping[str, object]:
        """Return how often an item was shown by this worker, and its events by action, by `minute` or `hour`.

        Raises:
            BadItem: code `not_found`.
        """

    def champion(self) -> str:
        """Return the name of the announced champion, `none` without one. It serves once this worker has verified it."""

    def trainings(self) -> Sequence[Mapping[str, object]]:
        """Return the running and the last trainings that reported their progress, newest report first."""

    async def releases(self) -> Sequence[Mapping[str, object]]:
        """Return the releases in this worker's folder, newest training data first."""
