"""Targets: what a search aims at."""
