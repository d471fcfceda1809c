"""Kits, measurement tasks and what agents upload."""
