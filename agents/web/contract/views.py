"""Schemas of what a worker shows to operators and to its web page."""

from __future__ import annotations

from collections.abc import Mapping

from agents.samples import KEPT, SUMS
from agents.web.contract.answers import DEGRADED_LIST, TIMINGS
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
from models.items.history import SLOTS
from schemas import trainings

__all__ = ["VIEWS"]

FLAG: Schema = {"type": "boolean"}
REASONS = {
    **mapped({"type": ["string", "array", "object"]}),
    "description": "What is missing, by name: a text, `restoring` the numbers of partitions, `troubles` a text by partition.",
}
WARNINGS = mapped(TEXT, "Problems that do not prevent answers, by name.")
REFUSED = mapped(TEXT, "Releases that were announced but refused, with the reason.")
ROLES = ("owner", "restoring", "standby")
COLUMN = listed(NUMBER, most=KEPT)
QUANTILES = listed(NULLABLE_NUMBER, most=KEPT)
WORKER = structure(
    {
        "address": TEXT,
        "uptime_s": NUMBER,
        "ready": FLAG,
        "reasons": REASONS,
        "warnings": WARNINGS,
        "release": TEXT,
        "champion": TEXT,
        "refused": REFUSED,
        "items": COUNT,
        "rules": {**COUNT, "description": "Version of the serving rules."},
    }
)
PARTITION = structure(
    {
        "partition": COUNT,
        "role": known((*ROLES, "elsewhere")),
        "owner": {**NULLABLE_TEXT, "description": "Address of the other worker that owns it."},
        "standbys": listed(TEXT),
    },
    {
        "applied": {"type": "integer"},
        "durable": {"type": "integer"},
        "lag": structure({"interactions": NUMBER, "requests": NUMBER}),
    },
    "A partition; the offsets and the lag where this worker owns it.",
)
TOTALS = structure(
    {name: mapped(NUMBER) for name in ("events", "dead_letters", "requests", "degraded", "shown", "dropped")},
    text="Sums since the start: by outcome, code, outcome, cause, source and filter.",
)
SAMPLES = structure(
    {
        "next": {**COUNT, "description": "`since` of the next call."},
        "interval_s": NUMBER,
        "at": listed(TIME_MS, most=KEPT),
        **dict.fromkeys((*SUMS, "lag"), COLUMN),
        **dict.fromkeys(("p50_ms", "p99_ms", "freshness_ms"), QUANTILES),
    },
    text="The last minutes in columns, oldest first.",
)
CARD = structure(
    {
        "item_id": TEXT,
        "title": TEXT,
        "text": TEXT,
        "categories": listed(TEXT),
        "has_image": FLAG,
        "price": NULLABLE_NUMBER,
        "available": FLAG,
        "published": FLAG,
        "published_at": nullable(TIME_MS),
        "statistics": structure(
            {
                "events": COUNT,
                "actions": mapped(COUNT),
                "popularity": NUMBER,
                "mean_value": NULLABLE_NUMBER,
                "first_event_time": nullable(TIME_MS),
                "neighbours": COUNT,
            }
        ),
    },
    text="A catalogue entry in short, with its statistics.",
)
MOST_SLOTS = max(kept for _, kept in SLOTS.values())
COUNTS = listed(COUNT, most=MOST_SLOTS)
HISTORY = structure(
    {
        "item_id": TEXT,
        "per": known(tuple(SLOTS)),
        "slot_ms": COUNT,
        "began": {**nullable(TIME_MS), "description": "Since when the counts are complete, null while nothing is counted."},
        "at": listed(TIME_MS, most=MOST_SLOTS),
        "shown": COUNTS,
        "actions": mapped(COUNTS, "Events of all users by action; actions without any are left out."),
    },
    text="What happened to an item, in columns by time, oldest first; the last entry is of the time that goes on.",
)
TRACED_SOURCE = structure(
    {"name": TEXT, **dict.fromkeys(("brought", "alone", "dropped", "passed", "ranked", "shown"), COUNT)},
    text="How many of a source's candidates reached each stage.",
)
TRACED_CANDIDATE = structure(
    {
        "item_id": TEXT,
        "sources": mapped(NULLABLE_NUMBER),
        "light": NULLABLE_NUMBER,
        "light_rank": {"type": ["integer", "null"]},
        "score": NULLABLE_NUMBER,
        "rank": COUNT,
        "position": {"type": ["integer", "null"]},
        "heads": listed(NULLABLE_NUMBER),
    }
)
TRACE = structure(
    {
        "sources": listed(TRACED_SOURCE),
        "filters": listed(structure({"name": TEXT, "dropped": COUNT})),
        **dict.fromkeys(("merged", "passed", "ranked", "shown"), COUNT),
        "heads": listed(TEXT),
        "candidates": listed(TRACED_CANDIDATE),
    },
    text="How many candidates each stage got and passed on, and how the order came about.",
)
RELEASE = structure(
    {
        "release": TEXT,
        "parent": {**TEXT, "description": "The release that the gate compared it with, `none` without one."},
        "positive": TEXT,
        "trained_until": TIME_MS,
        "trained_events": COUNT,
        "heads": listed(TEXT),
        "light": mapped(NUMBER),
        "content": mapped(NUMBER),
        "encoders": mapped(TEXT),
        "before": mapped({}),
        "after": mapped({}),
        "gate": mapped({}),
        "reliability": mapped(
            listed(structure({"predicted": NUMBER, "observed": NUMBER, "weight": NUMBER})),
            "By head: bins of held-out candidates, with probabilities and weight.",
        ),
    },
    text="A release, with metrics before and after training and the gate's verdict.",
)
LETTER = structure(
    {
        "letter": {**COUNT, "description": "Its number."},
        "topic": NULLABLE_TEXT,
        "partition": {"type": ["integer", "null"]},
        "offset": {"type": ["integer", "null"]},
        "timestamp": {"type": ["integer", "null"]},
        "code": TEXT,
        "reason": TEXT,
        "key": NULLABLE_TEXT,
        "value": NULLABLE_TEXT,
        "bytes": {**COUNT, "description": "Length of the value."},
        "headers": mapped(NULLABLE_TEXT),
    },
    text="A dead letter; bytes that are not text are escaped.",
)
TRAINING = structure(
    {
        "training": {**TEXT, "description": "Identifies it."},
        "kind": known(("full", "incremental")),
        "host": TEXT,
        "state": {
            **known(trainings.SHOWN),
            "description": "`running`; `silent`, if it has not reported for a minute and did not report its end either;"
            " `accepted` or `refused` by the gate; `skipped`, because there was too little to learn; `failed`; `interrupted`.",
        },
        "started_at": TIME_MS,
        "reported_at": TIME_MS,
        "elapsed_s": NUMBER,
        "part": {**TEXT, "description": "The part under way, or the last one."},
        "part_share": {**NUMBER, "description": "Share of the part that is done, 0 to 1."},
        "share": {**NULLABLE_NUMBER, "description": "Share of the whole that is done, 0 to 1; null until it is known."},
        "left_s": {**NULLABLE_NUMBER, "description": "Expected seconds until the end; null until they are known."},
        "parts": listed(structure({"name": TEXT, "expected_s": NUMBER}), most=trainings.MAX_PARTS),
        "release": {**NULLABLE_TEXT, "description": "The release that it made."},
        "reasons": listed(TEXT, most=trainings.MAX_REASONS),
    },
    text="A training that `riffle train` ran, as it last reported itself.",
)
PIPELINE = structure(
    {
        "release": TEXT,
        "rules": COUNT,
        "requests": NUMBER,
        "batches": NUMBER,
        "stages": listed(structure({"name": TEXT, "seconds": NUMBER, "batches": NUMBER})),
        "sources": listed(structure({"name": TEXT, "retrieved": COUNT, "shown": NUMBER})),
        "filters": listed(structure({"name": TEXT, "dropped": COUNT})),
        "candidates": structure(dict.fromkeys(("merge", "filter", "light", "select"), COUNT)),
        "failed": mapped(COUNT),
    },
    text="What flowed through the stages since the start.",
)
RECENT = structure(
    {
        "at": TIME_MS,
        "request_id": TEXT,
        "user_id": TEXT,
        "k": COUNT,
        "interface": known(("http", "kafka")),
        "ms": NUMBER,
        "outcome": {**TEXT, "description": "`slate`, `degraded`, or the code of the error."},
        "release": NULLABLE_TEXT,
        "degraded": DEGRADED_LIST,
        "timings_ms": TIMINGS,
    }
)
VIEWS: Mapping[str, Schema] = {
    "Health": structure(
        {"status": known(("ok", "stuck"))},
        {"stuck": mapped(NUMBER, "Seconds without progress by partition, for operators.")},
    ),
    "Readiness": structure(
        {"ready": FLAG},
        {"reasons": REASONS, "warnings": WARNINGS, "release": TEXT, "refused": REFUSED},
        "Without a token of scope `operate`, where tokens are needed, only `ready`.",
    ),
    "Tables": structure(
        {
            "tables": listed(
                structure(
                    {"table": TEXT, "partition": COUNT, "role": known(ROLES), "position": {"type": "integer"}},
                    {"lag": {"type": "integer"}, "rows": COUNT, "hash": TEXT, "restored": COUNT, "of": COUNT},
                    "A partition of a table: `position` is its changelog offset on disk, -1 while it is restored. Then"
                    " `restored` of `of` offsets of its changelog are read, once their number is known.",
                )
            )
        }
    ),
    "Live": structure({"worker": WORKER, "partitions": listed(PARTITION), "totals": TOTALS, "samples": SAMPLES}),
    "Recent": structure({"requests": listed(RECENT, text="Newest first.")}),
    "Trace": TRACE,
    "Traced": structure({"slate": ref("Slate"), "trace": ref("Trace"), "waited_ms": NUMBER}),
    "Card": CARD,
    "ItemHistory": HISTORY,
    "Cards": structure({"items": listed(ref("Card"))}),
    "Release": RELEASE,
    "Releases": structure({"serving": TEXT, "champion": TEXT, "releases": listed(ref("Release"))}),
    "Training": TRAINING,
    "Trainings": structure({"trainings": listed(ref("Training"), most=trainings.KEPT, text="Newest report first.")}),
    "Announced": structure({"champion": TEXT, "previous": TEXT}, text="Names of releases, `none` without one."),
    "Letter": LETTER,
    "Letters": structure(
        {"scanned": COUNT, "codes": mapped(COUNT, "Letters by code."), "letters": listed(ref("Letter"), text="Newest first.")}
    ),
    "Replayed": structure(dict.fromkeys(("sent", "cut", "superseded", "unreadable", "erased", "failed"), COUNT)),
    "Pipeline": PIPELINE,
}
