"""API keys, agent tokens and who may do what."""
