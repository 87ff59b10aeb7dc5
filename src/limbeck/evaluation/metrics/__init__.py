"""Measures that need no model: what they are computed from is on disk."""
