"""Publishing merchandising rules on their compacted topic."""

from __future__ import annotations

from schemas.rules import RuleSet, encode_rules
from schemas.settings import Settings
from streams.kafka import connect

__all__ = ["SERVING", "publish_rules"]

SERVING = "serving"
"Key of the rule set that serves."


async def publish_rules(settings: Settings, rules: RuleSet | None) -> None:
    """Replace the serving rules; None removes them. Returns when the broker has acknowledged."""
    producer = connect.producer(settings.kafka, connect.DURABLE)
    value = None if rules is None else encode_rules(rules)
    headers = [("content-type", b"application/json")]
    try:
        await producer.start()
        await producer.send_and_wait(settings.topic("rules"), value, key=SERVING.encode(), partition=0, headers=headers)
    finally:
        await producer.stop()
