"""What should be, worked out from what is. Pure."""
