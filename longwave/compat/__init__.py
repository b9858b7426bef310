"""Published systems under their published names: one module for each, imported by its users alone."""
