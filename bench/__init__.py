"""Measurements: `python -m bench.DRAWER.NAME --help`, from the project's root."""
