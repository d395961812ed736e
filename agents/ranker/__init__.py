"""The ranking process: ranks candidates of requests for workers. It has no rows, no catalogue and no state.

`collecting` forms batches, `answering` ranks and replies, `app` wires and runs.
"""
