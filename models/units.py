"""Units that several packages share."""

from __future__ import annotations

__all__ = ["DAY_MS"]

DAY_MS = 86_400_000
"Milliseconds in a day."
