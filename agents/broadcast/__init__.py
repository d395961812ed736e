"""State that every worker holds in full: the catalogue and the release."""
