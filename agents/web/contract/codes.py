"""The error codes of the HTTP interface by status, and those that each kind of route can answer with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["BODY", "COMMON", "ERRORS", "KAFKA", "TOKEN", "by_status", "status_of_code"]

ERRORS: Mapping[int, tuple[str, ...]] = {
    400: (
        "missing_field",
        "invalid_field",
        "invalid_body",
        "empty_body",
        "not_json",
        "too_deep",
        "too_many_events",
        "empty_list",
        "list_too_long",
        "unreadable_body",
        "bad_request",
        "contradictory_rules",
        "newer_format",
        "release_refused",
        "invalid_event",
        "future_event_time",
        "rejected",
    ),
    401: ("token_required",),
    403: ("cross_origin", "wrong_token", "forbidden"),
    404: ("not_found",),
    405: ("method_not_allowed",),
    408: ("body_timeout",),
    409: ("champion_changed",),
    413: ("too_large",),
    414: ("too_long",),
    415: ("unsupported_encoding",),
    417: ("expectation_failed",),
    429: ("rate_limited",),
    431: ("header_too_large",),
    500: ("internal",),
    503: ("not_ready", "not_held", "busy", "under_way", "broker_unavailable", "broker_refuses"),
    504: ("deadline_exceeded",),
}
"Codes by status. The table of errors in docs/interface.md holds the same."
COMMON = ("bad_request", "invalid_field", "too_large", "too_long", "expectation_failed", "header_too_large", "internal")
"Codes of every route: requests that cannot be read, unknown parameters, and failures."
TOKEN = ("token_required", "wrong_token", "forbidden", "rate_limited")
"Codes of routes that may need a token."
BODY = (
    "empty_body",
    "not_json",
    "too_deep",
    "invalid_body",
    "unreadable_body",
    "body_timeout",
    "unsupported_encoding",
    "missing_field",
)
"Codes of routes that read a body."
KAFKA = ("rejected", "broker_unavailable", "broker_refuses")
"Codes of routes that write records."
STATUSES = {code: status for status, codes in ERRORS.items() for code in codes}


def status_of_code(code: str) -> int:
    """Return the status of a code of `ERRORS`; raises KeyError for another one."""
    return STATUSES[code]


def by_status(codes: Iterable[str]) -> dict[int, list[str]]:
    """Return codes by their status, in the order of `ERRORS`."""
    wanted = set(codes)
    assert wanted <= set(STATUSES), wanted - set(STATUSES)
    found = {status: [code for code in listed if code in wanted] for status, listed in ERRORS.items()}
    return {status: listed for status, listed in found.items() if listed}
