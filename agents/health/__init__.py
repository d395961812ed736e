"""Health of a worker: its checks, and the state behind `/readyz`."""
