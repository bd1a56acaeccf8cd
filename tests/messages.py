"""Patterns for the messages of errors and warnings."""

import re


def exactly(message):
    """A pattern that matches a message as a whole; notes on an error may follow on other lines."""
    return rf"(?m)\A{re.escape(message)}$"
