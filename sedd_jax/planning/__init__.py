"""What a program will cost on a machine that is not here: read from what the compiler made."""
