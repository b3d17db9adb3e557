"""Scoring completions: built-in rewards, a user's own service, and sums of these."""
