"""Errors that a user can cause and mend."""


class UserError(Exception):
    """A user's mistake or a broken input: says what was given, what is allowed, and what to do. One paragraph, no traceback."""
