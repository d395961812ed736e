"""History replayed through the pipeline that serves."""
