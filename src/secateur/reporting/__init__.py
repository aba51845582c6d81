"""Pages for people, from a run's records; imports no torch."""
