"""The paper's claims, checked on spaces that can be written down."""
