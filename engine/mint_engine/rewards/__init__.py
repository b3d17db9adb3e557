"""What a completion is worth: built-in rewards, a user's own service, and sums of these."""
