"""What a trained model is for: loading it, sampling from it, bounding a likelihood."""
