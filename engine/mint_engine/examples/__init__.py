"""Training examples: reading data sets, rendering prompts, and drawing the examples of a step."""
