"""Kopf handlers: one file a kind, each only passes on what it saw."""
