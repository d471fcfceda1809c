"""Health, metrics and one log line a request."""
