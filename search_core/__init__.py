"""Which architecture? Spaces, supernets and gradient search; knows no device and no HTTP."""
