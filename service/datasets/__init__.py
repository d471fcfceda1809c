"""Data sets: registered, uploaded, checked where they can do no harm, and found by attempts."""
