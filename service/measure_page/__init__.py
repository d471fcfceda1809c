"""The page that turns any phone or laptop into an agent: `/measure/<code>`."""
