"""Writes the OpenAPI document to standard output, from the code."""

from __future__ import annotations

import sys

from agents.web.contract.document import indented_document
from agents.web.routes import described_routes

if __name__ == "__main__":
    sys.stdout.write(indented_document(described_routes()))
