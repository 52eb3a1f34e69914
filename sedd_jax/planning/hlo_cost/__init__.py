"""A cost model of compiled programs; it knows no SEDD and imports nothing of sedd_jax."""
