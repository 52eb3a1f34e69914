"""A page that fills in holes while one looks on."""
