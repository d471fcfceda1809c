"""Fitted latency models of a space on a target."""
