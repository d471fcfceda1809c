"""Browsers that signed in with an API key: a cookie, and a token against forged requests."""
