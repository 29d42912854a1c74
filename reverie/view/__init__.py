"""Pictures, videos and tables for a person to look at."""
