"""The machine: files, locks, processes, signals, optional packages, the hub."""
