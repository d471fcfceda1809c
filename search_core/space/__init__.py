"""Search spaces and architectures as plain frozen values; imports no torch."""
