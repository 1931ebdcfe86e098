"""Lookalike: visual search for fashion catalogues, by photo, by words, or by both."""

__version__ = "0.1.0"
