"""One training step, compiled for a mesh, and what is done between steps."""
