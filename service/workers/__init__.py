"""Workers: what they offer, and who is there."""
