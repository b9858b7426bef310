"""Golden numbers of the published systems, and the adapters that hold this library to them."""
