"""Ways to run an attempt; one contract."""
