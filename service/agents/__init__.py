"""Agents: processes that measure on a device."""
