"""What policies learn from: reading examples, rendering their prompts, and which of them a step takes."""
