"""The search spaces and data sets that can be named."""
