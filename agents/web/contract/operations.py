"""What each route takes and answers beyond what its registration says: parameters, bodies, answers and error codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agents.web.console_routes import MAX_CARDS, MAX_FOUND, MAX_RECENT
from agents.web.contract.codes import BODY, KAFKA
from agents.web.contract.shapes import Schema, ref
from agents.web.operator_routes import MAX_LETTERS
from agents.web.peers import EXPLAIN_PATH, PATH, PREVIEW_PATH
from agents.web.query import CONTEXT, MAX_DEADLINE_MS
from models.items.history import SLOTS
from schemas.parsing import FLAGS
from schemas.validation import (
    MAX_ENTRY_CHARS,
    MAX_ID_BYTES,
    MAX_K,
    MAX_OFFSET,
    MAX_PAIRS,
    MAX_PARTITION,
    MAX_USERS,
    MAX_VALUE_CHARS,
)

__all__ = ["JSON", "OPERATIONS", "TAGS", "Answer", "Operation", "of_path", "of_query"]

JSON = "application/json"
MAX_SINCE = 2**63 - 1
TAGS: Mapping[str, str] = {
    "events": "Send what users do.",
    "slates": "Ask for recommended items.",
    "catalogue": "Add, change, read and delete items.",
    "users": "Read and erase what is known of users.",
    "rules": "Read and preview merchandising rules.",
    "operation": "Watch a worker, and act for an operator.",
    "page": "The worker's web page.",
    "workers": "Between workers. Programs have no use for these.",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer, or one that reports a state with an error's status."""

    text: str
    schema: Schema | None = None
    media: tuple[str, ...] = (JSON,)
    "Media types; a schema is of the first."
    headers: Mapping[str, str] = field(default_factory=dict)
    "Descriptions of headers by name."


@dataclass(frozen=True, slots=True)
class Operation:
    """A route's part of the document."""

    name: str
    "`operationId`, from which clients derive the name of a function."
    tag: str
    answers: Mapping[int, Answer]
    codes: tuple[str, ...] = ()
    "Error codes beyond those that follow from the route's scope and kind."
    body: str = ""
    "Schema of the body; empty: it reads none."
    needs_body: bool = True
    "Whether a body must be sent where the route reads one."
    has_deadline: bool = False
    "Whether the header `deadline-ms` is read."
    failures: Mapping[int, str] = field(default_factory=dict)
    "Schema of an error's body by status, where it is not `Failure`."


def _ok(text: str, schema: str) -> Mapping[int, Answer]:
    return {200: Answer(text, ref(schema))}


def _taken(text: str, schema: str) -> Mapping[int, Answer]:
    return {202: Answer(text, ref(schema))}


RANKED = ("not_ready", "broker_unavailable", "deadline_exceeded")
"Codes of a request for a slate that got none in time."
PEER = ("not_ready", "busy")
"Codes of what looks at a user, which only the owner of the partition can."
RULES = ("contradictory_rules", "newer_format")
TRACED = (*PEER, "not_found", "release_refused")
ACTED = ("not_found", "busy", "under_way", "broker_unavailable", "release_refused", "champion_changed")
IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
FILES = ("text/html", "text/css", "text/javascript", "image/svg+xml")
UNCHANGED = Answer("The client has this version (`If-None-Match`).", None, (), {"ETag": "Entity tag of the file."})
FILE = {200: Answer("The file.", {"type": "string"}, FILES, {"ETag": "Entity tag of the file."}), 304: UNCHANGED}

OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("POST", "/v1/events"): Operation(
        "sendEvents",
        "events",
        _taken("The accepted and the rejected events. A list is answered so even if all are rejected.", "Accepted"),
        (*BODY, *KAFKA, "too_many_events", "invalid_event", "future_event_time"),
        body="Events",
        failures={400: "Refused"},
    ),
    ("GET", "/v1/recommend/{user_id}"): Operation("recommend", "slates", _ok("A slate.", "Slate"), RANKED, has_deadline=True),
    ("POST", "/v1/recommend"): Operation(
        "recommendWithBody",
        "slates",
        _ok("A slate or, for a list, an answer for each request.", "SlateOrAnswers"),
        (*BODY, *RANKED, "empty_list", "list_too_long"),
        body="Requests",
        has_deadline=True,
    ),
    ("POST", PATH): Operation(
        "recommendForWorker",
        "workers",
        _ok("A slate.", "Slate"),
        (*BODY, *RANKED, "not_held"),
        body="Request",
        has_deadline=True,
    ),
    ("GET", "/v1/similar/{item_id}"): Operation(
        "similarItems", "slates", _ok("Similar items, best first.", "Similar"), ("not_found",)
    ),
    ("GET", "/v1/users"): Operation(
        "listUsers",
        "users",
        _ok("A page of ids.", "UserPage"),
        ("missing_field", "not_ready", "busy", "broker_unavailable", "deadline_exceeded"),
    ),
    ("GET", "/v1/users/{user_id}"): Operation(
        "readUser", "users", _ok("The summary.", "UserSummary"), ("not_found", "not_ready")
    ),
    ("DELETE", "/v1/users/{user_id}"): Operation("eraseUser", "users", _taken("The erasure is stored.", "Erased"), KAFKA),
    ("GET", "/v1/items/{item_id}"): Operation("readItem", "catalogue", _ok("The entry.", "CatalogueEntry"), ("not_found",)),
    ("PUT", "/v1/items/{item_id}"): Operation(
        "storeItem", "catalogue", _taken("The entry is stored.", "Stored"), (*BODY, *KAFKA), body="Item"
    ),
    ("DELETE", "/v1/items/{item_id}"): Operation("deleteItem", "catalogue", _taken("The deletion is stored.", "Stored"), KAFKA),
    ("GET", "/v1/items/{item_id}/image"): Operation(
        "readImage", "catalogue", {200: Answer("The image.", None, IMAGES)}, ("not_found",)
    ),
    ("GET", "/v1/items"): Operation("searchItems", "catalogue", _ok("Items with their statistics.", "Cards")),
    ("GET", "/v1/items/{item_id}/history"): Operation(
        "readItemHistory", "catalogue", _ok("Counts of the item by time.", "ItemHistory"), ("not_found",)
    ),
    ("GET", "/v1/rules"): Operation("readRules", "rules", _ok("The rules.", "ServingRules")),
    ("POST", "/v1/rules/preview"): Operation(
        "previewRules", "rules", _ok("The preview.", "PreviewedRules"), (*BODY, *RULES, *PEER), body="Preview"
    ),
    ("POST", PREVIEW_PATH): Operation(
        "previewRulesForWorker",
        "workers",
        _ok("The preview.", "PreviewedRules"),
        (*BODY, *RULES, *PEER),
        body="Preview",
    ),
    ("GET", "/healthz"): Operation(
        "health", "operation", {200: Answer("It makes progress.", ref("Health")), 503: Answer("Restart it.", ref("Health"))}
    ),
    ("GET", "/readyz"): Operation(
        "readiness",
        "operation",
        {200: Answer("It answers requests.", ref("Readiness")), 503: Answer("It does not, yet.", ref("Readiness"))},
    ),
    ("GET", "/v1/tables"): Operation("listTables", "operation", _ok("The partitions.", "Tables")),
    ("GET", "/metrics"): Operation(
        "metrics", "operation", {200: Answer("Prometheus' text format.", {"type": "string"}, ("text/plain",))}
    ),
    ("GET", "/openapi.json"): Operation(
        "contract",
        "operation",
        {200: Answer("OpenAPI 3.1.", {"type": "object"}, (JSON,), {"ETag": "Entity tag of the document."}), 304: UNCHANGED},
    ),
    ("GET", "/"): Operation("page", "page", FILE),
    ("GET", "/page/{name}"): Operation("pageFile", "page", FILE, ("not_found",)),
    ("GET", "/v1/live"): Operation("live", "operation", _ok("The worker now, and its last minutes.", "Live")),
    ("GET", "/v1/pipeline"): Operation("pipeline", "operation", _ok("Sums by stage.", "Pipeline")),
    ("GET", "/v1/recent"): Operation("recent", "operation", _ok("The newest requests.", "Recent")),
    ("GET", "/v1/explain/{user_id}"): Operation("explain", "operation", _ok("The slate and its trace.", "Traced"), TRACED),
    ("POST", EXPLAIN_PATH): Operation(
        "explainForWorker", "workers", _ok("The slate and its trace.", "Traced"), (*BODY, *TRACED), body="TracedRequest"
    ),
    ("GET", "/v1/releases"): Operation("listReleases", "operation", _ok("The releases.", "Releases")),
    ("GET", "/v1/trainings"): Operation("listTrainings", "operation", _ok("The trainings.", "Trainings")),
    ("GET", "/v1/letters"): Operation(
        "listLetters", "operation", _ok("The dead letters.", "Letters"), ("busy", "broker_unavailable")
    ),
    ("POST", "/v1/letters/replay"): Operation(
        "replayLetters",
        "operation",
        _taken("What became of them.", "Replayed"),
        (*BODY, "not_found", "busy", "broker_unavailable"),
        body="Replay",
    ),
    ("POST", "/v1/releases/{name}/promote"): Operation(
        "promoteRelease",
        "operation",
        _taken("The announced release.", "Announced"),
        (*BODY, *ACTED),
        body="Expected",
        needs_body=False,
    ),
    ("POST", "/v1/releases/rollback"): Operation(
        "rollBack",
        "operation",
        _taken("The announced release.", "Announced"),
        (*BODY, *ACTED),
        body="Expected",
        needs_body=False,
    ),
}
"By method and path."


def _integer(low: int, high: int, text: str, usual: int | None = None) -> Schema:
    return {
        "type": "integer",
        "minimum": low,
        "maximum": high,
        **({} if usual is None else {"default": usual}),
        "description": text,
    }


def _flag(text: str) -> Schema:
    return {"type": "string", "enum": ["", *FLAGS], "description": f"{text} Empty means yes; case is ignored."}


def _several(text: str) -> Schema:
    entry = {"type": "string", "maxLength": MAX_ENTRY_CHARS}
    return {
        "type": "array",
        "items": entry,
        "description": f"{text} May be repeated, and hold several values with commas; empty ones do not count.",
    }


DEADLINE = _integer(1, MAX_DEADLINE_MS, "Milliseconds within which the answer must come.")
QUERY: Mapping[str, Schema] = {
    "k": _integer(1, MAX_K, "Number of items.", 10),
    "explain": _flag("Whether each item lists its scores."),
    "repeats": _flag("Whether the slate may hold items that the user has interacted with."),
    "exclude": _several("Ids of items that must not be shown."),
    "category": _several("Only items of one of these."),
    "after": {
        "type": "string",
        "pattern": "^[0-9]{1,7}:[0-9]{1,19}$",
        "examples": ["0:17"],
        "description": f"Token of an event, `partition:offset`, which the slate reflects; the offset is at most {MAX_OFFSET}.",
    },
    "deadline_ms": DEADLINE,
    "request_id": {"type": "string", "maxLength": MAX_ID_BYTES, "description": "Is returned."},
    CONTEXT: {
        "type": "object",
        "maxProperties": MAX_PAIRS,
        "propertyNames": {"pattern": f"^context\\..{{1,{MAX_ENTRY_CHARS}}}$"},
        "additionalProperties": {"type": "string", "maxLength": MAX_VALUE_CHARS},
        "description": "Values of the context, each as a parameter `context.NAME`.",
    },
    "digests": _flag("Whether a hash over each partition is computed, for which it is read in full."),
    "release": {
        "type": "string",
        "minLength": 1,
        "maxLength": MAX_ID_BYTES,
        "description": "The release that answers instead of the serving one; `none`: without a release.",
    },
    "since": _integer(0, MAX_SINCE, "Samples that the client has: `next` of the call before.", 0),
    "per": {"type": "string", "enum": list(SLOTS), "default": "hour", "description": "How long a count is."},
    "q": {"type": "string", "description": "Words or an id; without it, the most popular items."},
    "code": {"type": "string", "description": "Only letters with this code."},
    "partition": _integer(0, MAX_PARTITION, "Number of a partition, from 0 on."),
}
OWN: Mapping[tuple[str, str], Schema] = {
    ("/v1/users", "after"): {"type": "string", "maxLength": MAX_ID_BYTES, "description": "The last id of the page before."},
    ("/v1/users", "limit"): _integer(1, MAX_USERS, "Number of ids.", MAX_USERS),
    ("/v1/items", "limit"): _integer(1, MAX_FOUND, "Number of items.", 50),
    ("/v1/items", "id"): {
        "type": "array",
        "items": {"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES},
        "maxItems": MAX_CARDS,
        "description": "Ids of items, each as a parameter; not with `q` or `limit`.",
    },
    ("/v1/recent", "limit"): _integer(1, MAX_RECENT, "Number of requests.", MAX_RECENT),
    ("/v1/letters", "limit"): _integer(1, MAX_LETTERS, "Number of letters.", 50),
}
"Parameters that mean something else on a path."
NEEDED = frozenset({("/v1/users", "partition")})
"Parameters that must be given."


def of_query(path: str, name: str) -> Schema:
    """Return the parameter object of a query parameter; raises KeyError for one that is not described."""
    schema = dict(OWN[path, name] if (path, name) in OWN else QUERY[name])
    found: Schema = {"name": name, "in": "query", "description": schema.pop("description"), "schema": schema}
    if (path, name) in NEEDED:
        found["required"] = True
    if schema["type"] in {"array", "object"}:
        found |= {"style": "form", "explode": True}
    if name == CONTEXT:
        found["name"] = "context"
    return found


def of_path(name: str) -> Schema:
    """Return the parameter object of a placeholder."""
    text = {"user_id": "The user.", "item_id": "The item.", "name": "Its name."}[name]
    schema = {"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES}
    return {"name": name, "in": "path", "required": True, "description": text, "schema": schema}
