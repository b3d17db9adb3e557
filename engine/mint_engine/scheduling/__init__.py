"""Chooses which requests run in the next step, and runs it."""
