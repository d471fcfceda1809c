"""How long does it take on a device? Measurements and the models that price a search."""
