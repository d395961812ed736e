"""Error replies of the HTTP interface: all have the same JSON form, with the matching status."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable
from urllib.parse import unquote_to_bytes, urlsplit

import orjson
from aiohttp import web
from aiohttp.http import HttpVersion11
from aiohttp.typedefs import Handler
from aiokafka.errors import KafkaError

from agents.metrics import Metrics
from agents.web.body import check_length, is_broken
from schemas.errors import BadInput, BadRequest, DeadlineExceeded, NotReady, RateLimited, RiffleError, TransientError
from schemas.parsing import shown

__all__ = [
    "CODES",
    "HTTP_CODES",
    "check_origin",
    "encoded",
    "error_response",
    "guarded",
    "json_response",
    "status_of",
    "terminal_error",
]

log = logging.getLogger(__name__)

HTTP_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
}
"Codes of aiohttp's own errors, by their status."
CODES = {
    "token_required": 401,
    "cross_origin": 403,
    "forbidden": 403,
    "wrong_token": 403,
    "not_found": 404,
    "body_timeout": 408,
    "champion_changed": 409,
    "too_large": 413,
    "unsupported_encoding": 415,
    "expectation_failed": 417,
    "rate_limited": 429,
    "internal": 500,
}
"Statuses of codes for which the class of the error does not determine the status."
LAST = frozenset({408, 413})
"Statuses after which the connection is closed without reading the rest of the body."
CLIENT_LEFT = 499
"Status for counting requests whose client disconnected before the answer."
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def encoded(value: object) -> bytes:
    """Encode `value` as JSON.

    Raises:
        orjson.JSONEncodeError: it holds something that JSON cannot represent.
    """
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def json_response(value: object, status: int = 200) -> web.Response:
    """Build a JSON response. Raises as `encoded`."""
    return web.Response(body=encoded(value), status=status, content_type="application/json")


def error_response(error: RiffleError, status: int) -> web.Response:
    """Build the response `{"error": {"code", "message", "field"}}`."""
    response = json_response({"error": error.to_json()}, status)
    if status == 415:
        response.headers["Accept-Encoding"] = "gzip, deflate, identity"
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="riffle"'
    if isinstance(error, RateLimited):
        response.headers["Retry-After"] = str(error.retry_after_s)
    return response


def status_of(error: RiffleError) -> int:
    """Return the status of an error: by `CODES`, else 400 for bad input, 503 or 504 for temporary errors, 500 for others."""
    if error.code in CODES:
        return CODES[error.code]
    if isinstance(error, BadInput):
        return 400
    if isinstance(error, DeadlineExceeded):
        return 504
    return 503 if isinstance(error, TransientError) else 500


def terminal_error(error: Exception, what: str) -> RiffleError:
    """Return the error that the sender of `what` gets. Errors that the sender need not understand are logged here."""
    if isinstance(error, BadInput | TransientError) or (isinstance(error, RiffleError) and error.code in CODES):
        return error
    if isinstance(error, KafkaError):
        log.warning("%s: %r", what, error)
        return NotReady("broker_unavailable", "the broker did not accept all of it; sending it again is safe")
    log.error("%s failed", what, exc_info=error)
    return RiffleError("internal", "the request failed; the worker's log has the cause")


def guarded(
    handler: Handler, metrics: Metrics, leaving: Callable[[], bool] = lambda: False
) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    """Wrap `handler` to answer errors as JSON and to count every request by route, method and status.

    While `leaving` returns True, each answer is the last one of its connection.
    Unexpected errors are logged with their stack trace and answered as `internal`, without it.
    """

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        assert isinstance(request, web.Request)
        started = time.perf_counter()
        status = CLIENT_LEFT
        try:
            response = await _answered(request, handler)
            status = response.status
            if status in LAST or is_broken(request) or leaving():
                response.force_close()
        finally:
            found = request._match_info  # None when routing failed, where `match_info` would raise
            resource = found.route.resource if found is not None else None
            route = resource.canonical if resource is not None else "unknown"
            method = request.method if request.method in METHODS else "other"
            metrics.http_requests.add(route=route, method=method, status=status)
            metrics.http_request_seconds.observe(time.perf_counter() - started, route=route)
        return response

    return answer


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        _check_url(request.raw_path)
        _check_expectation(request)
        return await handler(request)
    except web.HTTPException as exc:
        return _of_http(request, exc)
    except ConnectionError:
        raise
    except Exception as exc:
        error = terminal_error(exc, f"{request.method} {shown(request.raw_path)}")
        return error_response(error, status_of(error))


def _check_expectation(request: web.Request) -> None:
    """Refuse too large a body before `100 Continue` requests it, and refuse all other expectations.

    Raises:
        BadRequest: code `too_large` or `expectation_failed`.
    """
    expected = request.headers.get("Expect", "")
    if not expected or request.version < HttpVersion11:
        return
    if expected.lower() != "100-continue":
        raise BadRequest("expectation_failed", f"Expect must be 100-continue, is {shown(expected)}", "Expect")
    check_length(request)


def _check_url(raw: str) -> None:
    """Refuse truncated escapes, invalid UTF-8, and a `#`, because yarl drops the part after it.

    Raises:
        BadRequest: code `invalid_field`.
    """
    if "#" in raw:
        raise BadRequest("invalid_field", "a # in a URL must be sent as %23", "URL")
    try:
        if "%" not in raw:
            raw.encode()
            return
        if BAD_ESCAPE.search(raw) is None:
            unquote_to_bytes(raw).decode()
            return
    except UnicodeError:
        pass
    raise BadRequest("invalid_field", "the URL is not UTF-8 with percent-encoding", "URL")


def _of_http(request: web.Request, exc: web.HTTPException) -> web.StreamResponse:
    if exc.status < 400:
        return web.Response(status=exc.status, headers=exc.headers)
    message = exc.reason or "the request cannot be answered"
    if isinstance(exc, web.HTTPNotFound):
        message = f"there is nothing at {(request.path or request.raw_path)[:200]}"
    elif isinstance(exc, web.HTTPMethodNotAllowed):
        message = f"{request.method[:20]} is not allowed here, use {', '.join(sorted(exc.allowed_methods))}"
    response = error_response(RiffleError(HTTP_CODES.get(exc.status, "bad_request"), message), exc.status)
    if "Allow" in exc.headers:
        response.headers["Allow"] = exc.headers["Allow"]
    return response


def check_origin(request: web.Request) -> None:
    """Refuse a write that a browser sends from a page of another origin, because a loopback service has no other protection.

    Raises:
        BadRequest: code `cross_origin`, also when the header cannot be read.
    """
    if request.method in {"GET", "HEAD", "OPTIONS"}:
        return
    if any(_netloc(origin) != request.host for origin in request.headers.getall("Origin", ())):
        raise BadRequest("cross_origin", "writes from pages of another origin are refused", "Origin")


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
