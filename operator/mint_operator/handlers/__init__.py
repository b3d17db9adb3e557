"""Kopf handlers: one file a kind, each only marks what is dirty."""
