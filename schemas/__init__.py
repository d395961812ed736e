"""The formats of Riffle's records, and settings: schemas, framing, validation, errors."""
