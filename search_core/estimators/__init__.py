"""Estimators of the architecture gradient; one contract, one file a method."""
