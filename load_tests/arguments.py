"""What several command lines here take."""

import argparse


def at_least_one(text: str) -> int:
    """A whole number from 1 on, as argparse asks for it."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number
