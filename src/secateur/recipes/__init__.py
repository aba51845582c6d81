"""The jobs, each a story to read from top to bottom."""
