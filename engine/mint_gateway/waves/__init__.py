"""Waves as clients see them: their progress, followed and explained."""
