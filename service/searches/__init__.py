"""Searches: a budget goes in, a measured network comes out."""
