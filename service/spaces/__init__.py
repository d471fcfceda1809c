"""The search spaces that can be named."""
