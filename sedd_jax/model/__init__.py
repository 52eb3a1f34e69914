"""The network, and the only place that imports flax."""
