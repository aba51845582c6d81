"""The version, in one place: the build reads it from here, and so does every file that Secateur writes."""

__version__ = "0.1.0"
