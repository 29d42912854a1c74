"""One training run: what it does (`loop`, `collect`, `ratio`) and what it leaves on disk."""
