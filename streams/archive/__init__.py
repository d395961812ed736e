"""The stream as Parquet files, idempotent by offset range."""
