"""What the paper claims, as figures with a limit each, computed on enumerated spaces."""
