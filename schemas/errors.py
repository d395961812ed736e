"""The exception tree, split by who must act.

RiffleError
├── BadInput            the caller corrects its input (HTTP 4xx, dead letter)
│   ├── BadEvent        → dead-letter topic
│   ├── BadItem         → dead-letter topic
│   ├── BadRequest
│   ├── BadRules         → the old rules keep serving
│   └── BadDataset
├── TransientError      the caller may retry
│   ├── DeadlineExceeded
│   ├── NotReady
│   └── RateLimited
├── ReleaseRejected     the old release keeps serving
├── StoreCorrupt        the store is rebuilt from its changelog
└── ConfigError         the operator corrects the settings
"""

from __future__ import annotations

from schemas.masking import masked

__all__ = [
    "BadDataset",
    "BadEvent",
    "BadInput",
    "BadItem",
    "BadRequest",
    "BadRules",
    "ConfigError",
    "DeadlineExceeded",
    "NotReady",
    "RateLimited",
    "ReleaseRejected",
    "RiffleError",
    "StoreCorrupt",
    "TransientError",
]


class RiffleError(Exception):
    """Base of all errors: a stable `code`, a human-readable message, and the field at fault if there is one.

    Logins and secret parameters of URLs are masked in the message.
    """

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        message = masked(message)
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field

    def to_json(self) -> dict[str, str | None]:
        """Return the error object of the HTTP and Kafka contracts."""
        return {"code": self.code, "message": self.message, "field": self.field}


class BadInput(RiffleError):
    """Invalid input, which the caller must correct."""


class BadEvent(BadInput):
    """A stream record that cannot be decoded or breaks a rule."""


class BadItem(BadInput):
    """A catalogue entry that breaks a rule."""


class BadRequest(BadInput):
    """A recommendation request that breaks a rule."""


class BadRules(BadInput):
    """A set of merchandising rules that cannot be used."""


class BadDataset(BadInput):
    """Training data, or a rule over them, that cannot be used."""


class TransientError(RiffleError):
    """A temporary failure."""


class DeadlineExceeded(TransientError):
    """The deadline has passed, or is expected to pass before the answer."""


class NotReady(TransientError):
    """The requested part is not ready yet."""


class RateLimited(TransientError):
    """Too many requests came from one client, which may come again in `retry_after_s` seconds."""

    def __init__(self, code: str, message: str, retry_after_s: int) -> None:
        super().__init__(code, message)
        self.retry_after_s = retry_after_s


class ReleaseRejected(RiffleError):
    """A release that must not serve."""


class StoreCorrupt(RiffleError):
    """Stored bytes that cannot be read."""


class ConfigError(RiffleError):
    """Invalid settings."""
