"""The training system: configuration, devices, optimiser, step, checkpoints, metrics."""
