"""Training of many policies at once on the base that is serving. `trainer.Trainer` is what others use.

example -> pieces -> work -> crew -> lean_pass or generic_pass (passes chooses) -> head, losses -> optimizer; policy
and state hold the numbers, and making makes policies beside all of this. The generic pass puts into transformers'
modules: delta (linears), routed (experts), replay (their routers), attend (attention), indexed (what sparse attention
chooses), sums (where ranks meet). Of several ranks the first has all of this and tells the others (follower) what to
compute; numbers pass by sharing.
"""
