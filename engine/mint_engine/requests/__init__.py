"""Reads clients' requests, chooses tokens, and writes the answers that clients get."""
