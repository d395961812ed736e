"""What every worker holds in whole: the catalogue and the release."""
