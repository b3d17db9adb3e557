"""Training of many policies at once on the base that is serving. `trainer.Trainer` is what others use.

example -> pieces -> work -> lean_pass or generic_pass (passes chooses) -> head, losses -> optimizer; policy and state
hold the numbers. The generic pass puts into transformers' modules: delta (linears), routed (experts), replay (their
routers), attend (attention), indexed (what sparse attention chooses).
"""
