"""What training waves add to a plan: which engine trains which policy, and under which lease. Pure."""
