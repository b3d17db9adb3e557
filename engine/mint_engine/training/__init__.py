"""Training of many policies at once on the base that is serving. `trainer.Trainer` is what others use.

example -> pieces -> work -> generic_pass -> head, losses -> optimizer; policy and state hold the numbers.
"""
