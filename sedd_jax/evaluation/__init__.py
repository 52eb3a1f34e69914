"""How good a trained model is: likelihoods by a stated protocol, and the quality of its samples."""
