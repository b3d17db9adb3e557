"""Policies in training: what each does next, rollouts and updates beside serving, checkpoints, revisions."""
