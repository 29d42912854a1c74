"""What time and memory things take."""
