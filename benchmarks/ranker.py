"""Cost of ranking: both rankers, in single and half precision, on the CPU, and on a GPU if onnxruntime-gpu finds one.

ranker.py [--rows 512 8192 65536] [--threads 1 2] [--runs 40] [--json]

Uses untrained rankers of the standard settings, exported as for a release. Each run is timed from arrays to arrays, including
copies to and from the GPU. Prints rows per run, p50 and p99 in ms, after three warm-up runs.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from models.features.compute import FEATURES
from models.release.graphs import Provider, session_of
from training.ranking.kinds import make_ranker
from training.recipe import KINDS, RankerSettings
from training.release.export import to_half, to_onnx

HEADS = 3


def graphs(kind: str) -> dict[str, bytes]:
    """Export an untrained ranker; returns a graph by precision."""
    torch.manual_seed(0)
    ranker = make_ranker(len(FEATURES), HEADS, RankerSettings(kind=kind)).eval()
    inputs = {"features": np.random.default_rng(0).normal(size=(256, len(FEATURES))).astype(np.float32)}
    graph, _ = to_onnx(ranker, inputs, "heads")
    return {"fp32": graph, "fp16": to_half(graph, inputs, "heads")[0]}


def timed(session: Any, rows: int, runs: int) -> list[float]:
    """Durations of the runs after warm-up, ms."""
    inputs = {"features": np.random.default_rng(1).normal(size=(rows, len(FEATURES))).astype(np.float32)}
    took = []
    for _ in range(3 + runs):
        since = time.perf_counter()
        session.run(None, inputs)
        took.append((time.perf_counter() - since) * 1e3)
    return took[3:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 8192, 65536])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of the CPU")
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    on_gpu = "CUDAExecutionProvider" in ort.get_available_providers()
    found: list[dict[str, Any]] = []
    for kind in KINDS:
        for precision, graph in graphs(kind).items():
            sessions = [(f"cpu, {n} threads", session_of(graph, n, provider=Provider.CPU)) for n in options.threads]
            if on_gpu:
                sessions.insert(0, ("gpu", session_of(graph, 1)))
                if sessions[0][1].get_providers()[0] != "CUDAExecutionProvider":
                    raise SystemExit("onnxruntime-gpu is here, and CUDA does not load: are its libraries on LD_LIBRARY_PATH?")
            for where, session in sessions:
                for rows in options.rows:
                    took = timed(session, rows, options.runs)
                    p50, p99 = (round(float(np.percentile(took, p)), 3) for p in (50, 99))
                    found.append({"ranker": kind, "precision": precision, "where": where, "rows": rows, "p50": p50, "p99": p99})
                    if not options.json:
                        print(f"{kind:8s} {precision} {where:16s} {rows:7d} rows p50 {p50:8.2f} p99 {p99:8.2f} ms", flush=True)
    if options.json:
        print(json.dumps({"onnxruntime": ort.__version__, "gpu": on_gpu, "runs": found}))


if __name__ == "__main__":
    main()
