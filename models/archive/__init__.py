"""The archive: names of its files, their rows, and where they lie."""
