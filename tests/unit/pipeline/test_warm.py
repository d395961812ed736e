"""Nothing is compiled while a worker serves: what `models.warm` runs covers every loop, with every type of argument."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
SCRIPT = """
import sys
from numba.core.registry import CPUDispatcher
from models.warm import warm

def compiled():
    found = {}
    for name, module in list(sys.modules.items()):
        if name.startswith(("models.", "schemas.")):
            for key, value in vars(module).items():
                if isinstance(value, CPUDispatcher):
                    found[value.__module__, value.__name__] = {str(signature) for signature in value.signatures}
    return found

warm()
before = compiled()
from itertools import islice
from recorded import answers, recorded_requests, world_of
world, records = world_of()
list(islice(answers(world, records), 400))
from models.pipeline.pipeline import CandidatePipeline
from models.pipeline.rules.book import RuleBook
from models.warm import RULES
from schemas.rules import rules_from
ruled = CandidatePipeline(world.items, slot=world.slot)
ruled.rules.swap(RuleBook(rules_from(RULES), world.items))
for request in recorded_requests()[:100]:
    assert not ruled.run([request], [records.get(request.user_id)], [None])[0].degraded
later = {name: now - before.get(name, set()) for name, now in compiled().items()}
tables = {name for name in later if name[0].startswith(("models.state", "schemas"))}
print({name: more for name, more in later.items() if more and name not in tables})
"""


def test_serving_compiles_nothing_that_was_not_warmed() -> None:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    ran = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2_000:]
    assert ran.stdout.strip() == "{}"
