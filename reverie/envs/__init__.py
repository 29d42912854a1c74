"""Environments: an adapter, supervised workers, a conformance check. Nothing here imports JAX."""
