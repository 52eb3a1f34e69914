"""What a run is: settings, pieces, mesh, checkpoints, folder, metrics, card."""
