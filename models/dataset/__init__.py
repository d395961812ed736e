"""Dataset folders: parsers and checks of users' own files."""
