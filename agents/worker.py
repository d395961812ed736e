"""`python -m agents.worker [--role ranking]`: one worker, or one ranking process, in the foreground."""

# ruff: noqa: E402
from __future__ import annotations

import asyncio
import gc
import os
import sys

# Set before NumPy is first imported. Products over a catalogue are too small for several threads, and threads that spin
# while they wait for the next product take the cores from all other work (decision 0008).
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import uvloop

from agents.memory import few_arenas
from agents.partitions.ownership import require_free, require_port
from agents.ranker.app import create_ranker
from agents.web.server_tls import check_listener
from agents.wiring import create_app
from models.warm import warm
from schemas.errors import ConfigError, RiffleError
from schemas.settings import Settings
from streams.logs import log_to_stderr

__all__ = ["RANKING", "ROLES", "WORKER", "main"]

ROLES = WORKER, RANKING = "worker", "ranking"
"""What a process does: a worker holds the rows of users and answers requests; a ranking process only ranks, for workers with
`RIFFLE_RANKING=remote`."""

COLLECT = 50_000, 20, 50
"""Thresholds of Python's garbage collector, by generation. They are high, because a chunk creates thousands of records that
reference counting frees, and a collection visits the whole catalogue."""
SWITCH_S = 0.0005
"Seconds after which a thread that runs Python yields to the event loop: a tenth of Python's default."


def main(role: str = WORKER) -> None:
    """Run a worker, or another role, until it is stopped (SIGTERM, SIGINT).

    Exit status: `EX_CONFIG` (78) if the settings cannot work, so that a restart is pointless; 1 after any other error.
    """
    sys.argv = sys.argv[:1]  # Faust reads it
    try:
        _run(Settings.from_env(), role)
    except RiffleError as exc:
        print(f"riffle: {exc.message}", file=sys.stderr, flush=True)  # noqa: T201 - before and after there is a log
        sys.exit(os.EX_CONFIG if isinstance(exc, ConfigError) else 1)


def _run(settings: Settings, role: str) -> None:
    log_to_stderr(settings.log_level, settings.log_format)
    check_listener(settings.http, settings.web_host)
    if role == WORKER:
        require_free(settings)
    else:
        require_port(settings, settings.rank_port, "RIFFLE_RANK_PORT")
    for folder in (settings.data_dir, settings.data_dir / "faust"):
        folder.mkdir(parents=True, exist_ok=True)
    warm()
    few_arenas()
    sys.setswitchinterval(SWITCH_S)
    gc.set_threshold(*COLLECT)
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    app = create_ranker(settings) if role == RANKING else create_app(settings)
    worker = app.Worker(loglevel=settings.log_level, quiet=True, override_logging=False, redirect_stdouts=False)
    worker.spinner = None  # it would write control codes of terminals into the log
    worker.execute_from_commandline()


if __name__ == "__main__":
    main(RANKING if sys.argv[1:] == ["--role", RANKING] else WORKER)
