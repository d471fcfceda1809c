"""The job queue: rows are the truth."""
