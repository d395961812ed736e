"""Named checks of a dataset folder, each with a remedy, before anything is sent: they take seconds, also for large files."""
