"""What an adapter is on disk: PEFT's files checked, and packed into one run in a slot's layout."""
