"""The resident base with many adapters: computed by the lean pass where possible, by the generic pass otherwise."""
