"""Pallas kernels, one per file beside its plain-JAX reference: `attention`."""
