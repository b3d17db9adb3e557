"""Policies in training: what each does next, its rollouts and updates beside serving, checkpoints, revisions."""
