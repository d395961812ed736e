"""The Kafka topics that programs use, as an AsyncAPI document: `python -m agents.asyncapi > docs/asyncapi.yaml` writes it."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from agents.requests.parsing import MAX_CORRELATION_BYTES, MAX_DEADLINE_MS
from agents.web.contract.answers import ANSWERS
from agents.web.contract.bodies import BODIES
from agents.web.contract.shapes import TEXT, Schema, ref, structure
from schemas.codec import MAX_VALUE_BYTES, schema_text
from schemas.columns import ERASE
from schemas.settings import Settings
from schemas.validation import MAX_ID_BYTES
from streams.kafka.topics import TOPICS

__all__ = ["AVRO", "KAFKA_CODES", "MESSAGES", "USED", "document", "page"]

VERSION = "1"
KAFKA_BINDING = "0.5.0"
AVRO_FORMAT = "application/vnd.apache.avro+yaml;version=1.9.0"
JSON, SINGLE_OBJECT = "application/json", "application/vnd.apache.avro+binary"
REPLY_TO, CORRELATION = "Faust-Ag-ReplyTo", "Faust-Ag-CorrelationId"
KAFKA_CODES = (
    *("null_value", "bad_headers", "no_reply_to", "invalid_reply_to", "unknown_framing", "unknown_schema", "no_registry"),
    *("truncated", "trailing_bytes", "key_mismatch", "wrong_partition", "registry_unavailable", "null_key", "invalid_key"),
)
"Error codes over Kafka beside those over HTTP."
AVRO: Mapping[str, str] = {
    "eventAvro": "interaction",
    "itemAvro": "item",
    "requestAvro": "request",
    "slateAvro": "slate",
    "impression": "impression",
    "deadLetter": "dead_letter",
    "trainingProgress": "training_progress",
}
"Avro schema of each message in Avro."
DESCRIPTION = f"""Send events and items to Riffle over Kafka, and ask for slates. HTTP accepts the same bodies, see the
OpenAPI document.

A value is JSON with the header `content-type: {JSON}`, or Avro in single-object encoding (`C3 01`, the
schema's fingerprint, the datum) or, with RIFFLE_REGISTRY_URL, in the Confluent wire format. It has at
most {MAX_VALUE_BYTES >> 20} MiB. Partition by the murmur2 hash of the key. `riffle.` is RIFFLE_TOPIC_PREFIX. Consumers must
ignore fields that they do not know."""
USED: Mapping[str, Sequence[str]] = {
    "interactions": ("event", "eventAvro", "erasure"),
    "items": ("item", "itemAvro", "deletion"),
    "requests": ("request", "requestAvro"),
    "rules": ("rules", "deletion"),
    "impressions": ("impression",),
    "dead-letters": ("deadLetter",),
    "trainings": ("trainingProgress",),
}
"Messages of each topic that programs read or write."


def _user(text: str) -> Schema:
    return {"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES, "description": text}


def _headers(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    return structure(required, optional)


IN_JSON: Mapping[str, Schema] = {"content-type": {"const": JSON}}
ASKS: Mapping[str, Schema] = {REPLY_TO: {**TEXT, "description": "Topic of the answer, which must exist."}}
MAY_ASK: Mapping[str, Schema] = {
    CORRELATION: {
        **TEXT,
        "maxLength": MAX_CORRELATION_BYTES,
        "description": f"Is returned unchanged; any bytes, at most {MAX_CORRELATION_BYTES:,}.",
    },
    "deadline-ms": {
        "type": "string",
        "pattern": "^[0-9]{1,5}$",
        "description": f"Milliseconds from the record's timestamp, 1 to {MAX_DEADLINE_MS}, in ASCII digits.",
    },
    "traceparent": {**TEXT, "description": "The trace that the request continues (W3C Trace Context)."},
}
ANSWERS_WITH = {CORRELATION: {**TEXT, "description": "That of the request."}}
USER_KEY = _user("The user_id.")
ITEM_KEY = {**_user("The item_id."), "type": "string"}
LETTER_KEY = {"type": ["string", "null"], "description": "That of the record."}
TRAINING_KEY = {"type": "string", "description": "That of the training."}


def _message(title: str, key: Schema, payload: Schema, headers: Schema | None = None, kind: str = JSON) -> dict[str, Any]:
    found: dict[str, Any] = {"title": title, "contentType": kind, "payload": payload}
    if headers is not None:
        found["headers"] = headers
    return {**found, "bindings": {"kafka": {"key": key, "bindingVersion": KAFKA_BINDING}}}


def _avro(name: str) -> dict[str, Any]:
    return {"schemaFormat": AVRO_FORMAT, "schema": json.loads(schema_text(name))}


NOTHING: Schema = {"type": "null", "description": "A null or empty value."}
MESSAGES: Mapping[str, dict[str, Any]] = {
    "event": _message("An event", USER_KEY, ref("KafkaEvent"), _headers(IN_JSON)),
    "eventAvro": _message("An event in Avro", USER_KEY, _avro("interaction"), None, SINGLE_OBJECT),
    "erasure": _message(
        "The erasure of a user", USER_KEY, NOTHING, _headers({ERASE[0]: {"const": ERASE[1].decode()}}), SINGLE_OBJECT
    ),
    "item": _message("A catalogue entry", ITEM_KEY, ref("KafkaItem"), _headers(IN_JSON)),
    "itemAvro": _message("A catalogue entry in Avro", ITEM_KEY, _avro("item"), None, SINGLE_OBJECT),
    "deletion": _message("The deletion of what has this key", TEXT, NOTHING, None, SINGLE_OBJECT),
    "request": {
        **_message("A request", USER_KEY, ref("Request"), _headers({**IN_JSON, **ASKS}, MAY_ASK)),
        "correlationId": {"location": f"$message.header#/{CORRELATION}"},
    },
    "requestAvro": {
        **_message("A request in Avro", USER_KEY, _avro("request"), _headers(ASKS, MAY_ASK), SINGLE_OBJECT),
        "correlationId": {"location": f"$message.header#/{CORRELATION}"},
    },
    "slate": _message("The answer to a request in JSON", USER_KEY, ref("Reply"), _headers({**IN_JSON, **ANSWERS_WITH})),
    "slateAvro": _message(
        "The answer to a request in Avro; it has an `error` or items",
        USER_KEY,
        _avro("slate"),
        _headers(ANSWERS_WITH),
        SINGLE_OBJECT,
    ),
    "rules": _message("Merchandising rules", {"const": "serving"}, ref("Rules")),
    "impression": _message("A slate as shown, with the ranker's input", USER_KEY, _avro("impression"), None, SINGLE_OBJECT),
    "deadLetter": _message("A record that could not be used", LETTER_KEY, _avro("dead_letter"), None, SINGLE_OBJECT),
    "trainingProgress": _message(
        "How far a training is, or how it ended", TRAINING_KEY, _avro("training_progress"), None, SINGLE_OBJECT
    ),
}
OPERATIONS: Mapping[str, tuple[str, str, str]] = {
    "applyEvents": ("receive", "interactions", "Applies events: the next slate of the user reflects them."),
    "followCatalogue": ("receive", "items", "Follows the catalogue. Items must be on their topic before their events."),
    "answerRequests": ("receive", "requests", "Answers each accepted request once, on the topic that it names."),
    "applyRules": ("receive", "rules", "Applies the newest rules within a second."),
    "logSlates": ("send", "impressions", "Logs slates as shown. One that was sent twice has the same `request_id`."),
    "reportUnusable": ("send", "dead-letters", "Reports records that cannot be used. Read with `read_committed`."),
    "reportTrainings": ("send", "trainings", "`riffle train` reports its progress every few seconds, and its end."),
}
"By name: what Riffle does, on which topic."


def document(settings: Settings | None = None) -> dict[str, Any]:
    """Describe the topics under the names that they have with these settings, or with the default ones."""
    given = settings or Settings()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Riffle",
            "version": VERSION,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": JSON,
        "servers": {
            "broker": {
                "host": given.bootstrap_servers,
                "protocol": "kafka",
                "description": "RIFFLE_BOOTSTRAP, or the embedded broker.",
            }
        },
        "channels": {
            **{name: _channel(name, given) for name in USED},
            "replies": {
                "address": None,
                "title": "The topic that the request names, which its sender creates",
                "messages": _messages(("slate", "slateAvro")),
            },
        },
        "operations": {name: _operation(*about) for name, about in OPERATIONS.items()},
        "components": {"messages": dict(MESSAGES), "schemas": _schemas()},
    }


def _messages(names: Sequence[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/messages/{name}"} for name in names}


def _channel(name: str, settings: Settings) -> dict[str, Any]:
    spec = TOPICS[name]
    set_to = spec.configuration()
    configuration: dict[str, Any] = {"cleanup.policy": [set_to["cleanup.policy"]]}
    configuration |= {key: int(set_to[key]) for key in ("retention.ms", "delete.retention.ms") if key in set_to}
    topic = settings.topic(name)
    return {
        "address": topic,
        "title": spec.purpose,
        "messages": _messages(USED[name]),
        "bindings": {
            "kafka": {
                "topic": topic,
                "partitions": spec.partitions or settings.partitions,
                "topicConfiguration": configuration,
                "bindingVersion": KAFKA_BINDING,
            }
        },
    }


def _operation(action: str, topic: str, text: str) -> dict[str, Any]:
    named = [{"$ref": f"#/channels/{topic}/messages/{name}"} for name in USED[topic]]
    found = {"action": action, "channel": {"$ref": f"#/channels/{topic}"}, "summary": text, "messages": named}
    if topic != "requests":
        return found
    reply = {
        "address": {"location": f"$message.header#/{REPLY_TO}", "description": "The header of the request."},
        "channel": {"$ref": "#/channels/replies"},
        "messages": [{"$ref": f"#/channels/replies/messages/{name}"} for name in ("slate", "slateAvro")],
    }
    return {**found, "reply": reply}


def _schemas() -> dict[str, Schema]:
    """Return the schemas that messages refer to, with what they refer to."""
    own: dict[str, Schema] = {**BODIES, **ANSWERS}
    event, item = copy.deepcopy(BODIES["Event"]), copy.deepcopy(BODIES["Item"])
    event["required"].append("event_time")
    event["properties"]["event_time"]["type"] = ["integer", "string"]
    item["required"] = ["item_id"]
    item["properties"]["item_id"]["type"] = ["string", "integer"]
    error = copy.deepcopy(ANSWERS["Error"])
    error["properties"]["code"]["x-extensible-enum"] += KAFKA_CODES
    reply = structure(
        {"key": TEXT, "value": {"anyOf": [ref("Slate"), ref("Failure")]}, "correlation_id": TEXT},
        text="A slate or an error, in the form that Faust's `ask` reads.",
    )
    own |= {"KafkaEvent": event, "KafkaItem": item, "Error": error, "Reply": reply}
    found: dict[str, Schema] = {}
    wanted = _references(list(MESSAGES.values()))
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = own[name]
            wanted |= _references(own[name])
    return {name: found[name] for name in sorted(found)}


def _references(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_references, value))
    if not isinstance(value, dict):
        return set()
    own = {value["$ref"].rpartition("/")[2]} if isinstance(value.get("$ref"), str) else set()
    return own.union(*map(_references, value.values()))


class _Plain(yaml.SafeDumper):
    """Writes what occurs twice twice, and long texts on several lines."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Use no anchors."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _text)


def page() -> str:
    """Return the document as YAML."""
    first = "# Written by `python -m agents.asyncapi > docs/asyncapi.yaml`; a test fails when it is not current.\n"
    return first + yaml.dump(document(), Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)


if __name__ == "__main__":
    sys.stdout.write(page())
