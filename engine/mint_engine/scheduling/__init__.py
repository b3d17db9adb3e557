"""Who runs in the next step, and the step itself."""
