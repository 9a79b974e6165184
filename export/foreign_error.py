"""The error of everything that takes in networks of other libraries."""


class ForeignError(Exception):
    """A network or its weights that cannot be taken; says what to do instead."""
