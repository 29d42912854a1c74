"""Rows as they happened: rings in memory (`sequences`), append-only segments (`segments`)."""
