"""What is not right with a worker: what it looks at, and what `/readyz` says."""
