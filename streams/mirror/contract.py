"""Interfaces of a mirror: `Mirror` for the worker, which writes summaries of users, and `MirrorStore` for storage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Protocol

__all__ = ["Mirror", "MirrorStore"]


class Mirror(Protocol):
    """Copies of user summaries for external readers. No request needs them, and no call fails."""

    @property
    def counters(self) -> Counter[str]:
        """`written`, `dropped`, `failed`, `failed_reads`, which count users, not calls."""

    def put(self, user_id: str, summary: Mapping[str, object]) -> None:
        """Queue a summary. Never waits."""

    def remove(self, user_id: str) -> None:
        """Queue a removal, because the user was erased. Never waits."""

    async def get(self, user_id: str) -> dict[str, object] | None:
        """A user's last mirrored summary; None when there is none, or the store does not answer."""

    async def start(self) -> None:
        """Begin to write."""

    async def stop(self) -> None:
        """Write the queue once, and disconnect."""


class MirrorStore(Protocol):
    """Storage of summaries, as JSON by user.

    Each call raises `TransientError` if the store does not answer within a few seconds.
    """

    async def write(self, values: Mapping[str, bytes | None]) -> None:
        """Replace the summaries of these users; None removes one. A call that fails may have written some of them."""

    async def read(self, user_id: str) -> bytes | None:
        """A user's summary; None when there is none."""

    async def close(self) -> None:
        """Disconnect."""
