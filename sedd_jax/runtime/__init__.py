"""Former names, for one release."""
