"""Computing what fits on a device from a base's config.json alone, without torch and without I/O."""
