"""Webhooks: telling other systems what happened, signed, retried and logged."""
