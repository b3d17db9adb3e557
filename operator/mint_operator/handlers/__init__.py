"""Kopf handlers, one file per kind. Each only passes on what it saw."""
