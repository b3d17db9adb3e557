"""What training waves add to a plan: who trains what and where, and under which lease. Pure."""
