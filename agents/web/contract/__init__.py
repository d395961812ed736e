"""The HTTP interface as an OpenAPI document: schemas of bodies and answers, error codes, and what each route takes."""
