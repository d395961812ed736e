"""Every error of the HTTP interface as one JSON shape with the right status."""

from __future__ import annotations

import asyncio
import logging
import time
from urllib.parse import urlsplit

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from aiokafka.errors import KafkaError

from agents.metrics import Metrics
from schemas.errors import BadInput, DeadlineExceeded, NotReady, RiffleError, TransientError

__all__ = ["error_middleware", "error_response", "json_response", "status_of"]

log = logging.getLogger(__name__)

HTTP_CODES = {
    400: "bad_request",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    411: "length_required",
    413: "too_large",
    414: "too_long",
    417: "expectation_failed",
}


def json_response(value: object, status: int = 200) -> web.Response:
    """`value` as a JSON answer; what is neither finite nor JSON fails here, not at the reader."""
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    return web.Response(body=body, status=status, content_type="application/json")


def error_response(error: RiffleError, status: int) -> web.Response:
    """`{"error": {"code", "message", "field"}}`."""
    return json_response({"error": error.to_json()}, status)


def status_of(error: RiffleError) -> int:
    """400 for input to mend, 404 and 413 by code, 503 and 504 for what may pass, 500 for the rest."""
    if isinstance(error, BadInput):
        if error.code == "not_found":
            return 404
        return 413 if error.code == "too_large" else 400
    if isinstance(error, DeadlineExceeded):
        return 504
    return 503 if isinstance(error, TransientError) else 500


def error_middleware(metrics: Metrics) -> Middleware:
    """Middleware that answers errors as JSON and counts every request by route, method and status.

    Anything unexpected is logged with its stack trace and answered as `internal`, without it. Writes that a browser
    sends from a page of another origin are refused: a service on loopback has no other defence against them.
    """

    @web.middleware
    async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        try:
            response = _foreign_origin(request) or await handler(request)
        except RiffleError as error:
            response = error_response(error, status_of(error))
        except KafkaError as exc:
            log.warning("%s %s: %r", request.method, request.path, exc)
            unavailable = NotReady("broker_unavailable", "the broker did not take it all; sending it again is safe")
            response = error_response(unavailable, 503)
        except web.HTTPException as exc:
            response = _of_http(request, exc)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            response = error_response(RiffleError("internal", "the request failed; the worker's log has the cause"), 500)
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "unknown"
        method = request.method if request.method in _METHODS else "other"
        metrics.count("http_requests", route=route, method=method, status=response.status)
        metrics.observe("http_request_seconds", time.perf_counter() - started, route=route)
        return response

    return errors


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


def _of_http(request: web.Request, exc: web.HTTPException) -> web.StreamResponse:
    if exc.status < 400:
        raise exc
    message = exc.reason or "the request cannot be answered"
    if isinstance(exc, web.HTTPNotFound):
        message = f"there is nothing at {request.path[:200]}"
    elif isinstance(exc, web.HTTPMethodNotAllowed):
        message = f"{request.method[:20]} is not allowed here, use {', '.join(sorted(exc.allowed_methods))}"
    response = error_response(RiffleError(HTTP_CODES.get(exc.status, "http_error"), message), exc.status)
    if "Allow" in exc.headers:
        response.headers["Allow"] = exc.headers["Allow"]
    return response


def _foreign_origin(request: web.Request) -> web.StreamResponse | None:
    if request.method in {"GET", "HEAD", "OPTIONS"}:
        return None
    origin = request.headers.get("Origin")
    if origin is None or urlsplit(origin).netloc == request.host:
        return None
    return error_response(RiffleError("cross_origin", "writes from pages of another origin are refused", "Origin"), 403)
