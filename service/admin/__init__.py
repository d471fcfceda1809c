"""What the people who run an installation do to its store, beside the API."""
