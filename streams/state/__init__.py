"""State of partitions: stored on disk, recovered from changelogs, kept warm on standbys."""
