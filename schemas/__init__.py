"""What Riffle's records look like: schemas, framing, validation, errors."""
