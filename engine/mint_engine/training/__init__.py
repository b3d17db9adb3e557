"""Training of many policies at once on the base that is serving. `trainer.Trainer` is the entry point.

example -> pieces -> work -> update_ranks -> lean_pass or generic_pass (passes chooses) -> head, losses -> optimizer;
policy and state hold the numbers, and making creates policies. The generic pass modifies transformers' modules: delta
(linears), routed (experts), replay (their routers), attend (attention), indexed (sparse attention's choice), sums
(sums over ranks). With several ranks, the first one runs all of this and tells the others (follower) what to compute;
sharing distributes the policies' numbers.
"""
