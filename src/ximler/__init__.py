"""Ximler: the complete backend of a canvas SaaS on a real MongoDB."""

__version__ = "0.1.0"
