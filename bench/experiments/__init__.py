"""Runs that learn, and what becomes of them."""
