"""The archive: file names, rows and storage targets."""
