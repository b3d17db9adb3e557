"""Updates of many policies on the step thread, between the steps that serve."""
