"""The runtimes an agent can measure; imported only when used."""
