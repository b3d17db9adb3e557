"""Policies that programs train by calls of the Trainer API, and the service that answers them."""
