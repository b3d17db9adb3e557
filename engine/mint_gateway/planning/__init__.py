"""What fits on a device, counted from a base's config.json alone; without torch, and without I/O."""
