"""Schemas of what a worker answers to clients: events, slates, users, items, rules and errors."""

from __future__ import annotations

from collections.abc import Mapping

from agents.web.contract.bodies import KINDS
from agents.web.contract.codes import ERRORS
from agents.web.contract.shapes import (
    COUNT,
    NULLABLE_NUMBER,
    NULLABLE_TEXT,
    NUMBER,
    TEXT,
    TIME_MS,
    Schema,
    known,
    listed,
    mapped,
    nullable,
    ref,
    structure,
)

__all__ = ["ANSWERS", "STATES"]

CODES = tuple(code for codes in ERRORS.values() for code in codes)
DEGRADED = (
    "stale",
    "ranker",
    "rules",
    "ranked:half",
    "ranked:quarter",
    "ranked:none",
    "popular",
    "standby",
    "mirror",
    "no_state",
)
"Marks of slates that lack something. `source:NAME` and `hydrator:NAME` name a part that failed."
STATES = ("live", "waiting", "expired")
"States of a rule (`agents.figures.state_of`)."
DEGRADED_LIST = listed(
    {"type": "string", "examples": list(DEGRADED)},
    text="What the slate lacks; empty if nothing. `source:NAME` and `hydrator:NAME` name a part that failed.",
)
TIMINGS = mapped(NUMBER, "Milliseconds by stage.")
ACCEPTED: Mapping[str, Schema] = {
    "accepted": COUNT,
    "rejected": listed(structure({"index": COUNT, "error": ref("Error")}), text="Events that were refused, by their index."),
    "tokens": listed(ref("Token"), text="A token for each accepted event, in order."),
}
RULE_SET: Mapping[str, Schema] = {
    "format": COUNT,
    "version": COUNT,
    "rules": listed(
        structure(
            {"name": TEXT, "kind": known([str(kind) for kind in KINDS]), "state": known(STATES), "matches": COUNT},
            {
                "where": ref("Where"),
                "when": ref("When"),
                "from": TIME_MS,
                "until": TIME_MS,
                "factor": NUMBER,
                "pins": listed(structure({"item_id": TEXT, "position": COUNT})),
                **dict.fromkeys(("least", "first", "most", "fewer_than"), COUNT),
                "per": TEXT,
                "share": NUMBER,
            },
            "A rule, with its state and the number of items that it matches now.",
        )
    ),
    "expired": {**COUNT, "description": "Number of expired rules."},
}
SIMILAR = structure(
    {"item_id": TEXT, "score": NUMBER, "sources": listed(TEXT)},
    {"explanation": ref("Explanation")},
    "An item of a slate, with the sources that retrieved it.",
)
SUMMARY = structure(
    {
        "user_id": TEXT,
        "events": COUNT,
        "counts": mapped(COUNT, "Events by action."),
        "first_event_time": TIME_MS,
        "last_event_time": TIME_MS,
        "affinities": mapped(NUMBER, "Decayed number of events by category."),
        "recent": listed(
            structure({"item_id": NULLABLE_TEXT, "action": TEXT, "event_time": TIME_MS, "value": NULLABLE_NUMBER}),
            text="The newest events, newest first; `item_id` is null for an item that the catalogue no longer holds.",
        ),
        "seen": {**COUNT, "description": "Number of items in the seen-set."},
        "session": structure({"session_id": NULLABLE_TEXT, "started_at": TIME_MS, "events": COUNT}),
    },
    {"seen_set": structure({"items": COUNT, "tiers": COUNT, "bytes": COUNT, "false_positive_rate": NUMBER})},
    "What Riffle knows of a user. `seen_set` comes from the owner of the user's partition only.",
)
CATALOGUE_ENTRY = structure(
    {
        "item_id": TEXT,
        "title": TEXT,
        "text": TEXT,
        "categories": listed(TEXT),
        "image": NULLABLE_TEXT,
        "price": NULLABLE_NUMBER,
        "available": {"type": "boolean"},
        "published_at": nullable(TIME_MS),
        "attributes": mapped(TEXT),
    },
    text="A catalogue entry, which `PUT` accepts as it is.",
)
SLATE = structure(
    {
        "request_id": TEXT,
        "user_id": TEXT,
        "items": listed(ref("SlateItem"), text="Best first."),
        "release": {"type": "string", "description": "Name of the release, `none` without one."},
        "arm": TEXT,
        "degraded": DEGRADED_LIST,
        "as_of": nullable(ref("AsOf")),
        "timings_ms": TIMINGS,
    },
    text="An ordered list of recommended items.",
)
EXPLANATION = structure(
    {
        "sources": mapped(NULLABLE_NUMBER, "Scores by source."),
        "light": NULLABLE_NUMBER,
        "dropped": mapped(COUNT, "Candidates that filters dropped, by filter."),
    },
    {"heads": mapped(NULLABLE_NUMBER, "Probabilities by action."), "rules": listed(TEXT, text="Rules that moved the item.")},
    "How an item came into the slate.",
)
ANSWERS: Mapping[str, Schema] = {
    "Error": structure(
        {"code": known(CODES, "Stable."), "message": {**TEXT, "description": "For humans."}, "field": NULLABLE_TEXT},
        text="What is wrong; `field` names the invalid field.",
    ),
    "Failure": structure({"error": ref("Error")}),
    "Token": structure({"partition": COUNT, "offset": COUNT}, text="Where an event is stored; a request may wait for it."),
    "AsOf": structure(
        {"partition": COUNT, "offset": COUNT, "event_time": TIME_MS},
        text="The newest event of the user's partition that a slate reflects.",
    ),
    "Accepted": structure(ACCEPTED),
    "Refused": structure(
        {"error": ref("Error")}, ACCEPTED, "With the other fields if the body was one event, and this event is refused."
    ),
    "Explanation": EXPLANATION,
    "SlateItem": SIMILAR,
    "Slate": SLATE,
    "Answers": structure(
        {
            "answers": listed(
                {"anyOf": [ref("Slate"), structure({"error": ref("Error"), "status": COUNT})]},
                text="Of each request, in order: its slate, or its error with the status that it would have alone.",
            )
        }
    ),
    "SlateOrAnswers": {
        "anyOf": [ref("Slate"), ref("Answers")],
        "description": "A slate for a request, `answers` for a list.",
    },
    "Similar": structure({"item_id": TEXT, "items": listed(ref("SlateItem"))}),
    "UserPage": structure(
        {"partition": COUNT, "partitions": COUNT, "users": listed(TEXT), "next": NULLABLE_TEXT},
        text="Ids in the order of their bytes; `next` is the `after` of the next page, null on the last one.",
    ),
    "UserSummary": SUMMARY,
    "Erased": structure(
        {"user_id": TEXT, "token": ref("Token")}, text="Requests `after` the token no longer use the user's events."
    ),
    "CatalogueEntry": CATALOGUE_ENTRY,
    "Stored": structure({"item_id": TEXT, "accepted": COUNT}),
    "ServingRules": structure({**RULE_SET, "refused": nullable(ref("Error"))}, text="The rules that serve."),
    "PreviewedRules": structure(
        {**RULE_SET, "serving": nullable(ref("Slate")), "proposed": nullable(ref("Slate"))},
        text="The proposed rules, and the slates with the serving and with these rules.",
    ),
}
