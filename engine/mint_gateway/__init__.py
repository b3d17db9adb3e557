"""The gateway: a stateless router from an adapter's name to the warmest engine that holds it."""
