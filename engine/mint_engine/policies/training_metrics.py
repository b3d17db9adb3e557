"""Training's Prometheus metrics. Policies are never labels: there can be thousands of them."""

from prometheus_client import Counter, Gauge, Histogram

STEPS = Counter("mint_train_steps", "Finished steps of policies")
SKIPPED = Counter("mint_train_steps_skipped", "Steps that changed nothing, by reason", ["reason"])
TOKENS = Counter("mint_train_tokens", "Tokens of prompts and completions that policies learnt from")
REWARD = Histogram(
    "mint_train_reward", "Mean reward of a step's completions", buckets=(0, 0.1, 0.25, 0.5, 0.75, 0.9, 1, 2, 5, 10)
)
SECONDS = Histogram(
    "mint_train_seconds",
    "Seconds of a step's phases: rollout, reward, update, step; and of evaluate, save, publish and load",
    ["phase"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
PIECE = Histogram(
    "mint_train_piece_seconds",
    "One bounded piece of updates, which the next step of requests waits for",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
TOGETHER = Histogram(
    "mint_train_policies_together", "Policies in one forward and backward", buckets=(1, 2, 4, 8, 16, 32, 64)
)
DRIFT = Histogram(
    "mint_train_drift",
    "Mean difference of trainer's and sampler's log-probabilities over a step's completions",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1),
)
BEYOND = Histogram(
    "mint_train_beyond_band",
    "Part of a step's tokens that the ratio band left out",
    buckets=(0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1),
)
POLICIES = Gauge("mint_train_policies", "Policies on this engine, by stage", ["stage"])
