"""Text to token blocks: presets, files and hub data sets; seeded and fingerprinted."""
