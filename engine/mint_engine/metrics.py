"""The engine's Prometheus metrics. Adapters are never labels: there can be a million of them."""

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter(
    "mint_engine_requests", "Requests that ended, by how: stop, length, cancelled, or the error", ["outcome"]
)
TOKENS = Counter(
    "mint_engine_tokens",
    "Tokens of requests that were answered: of prompts, of these the cached, and of completions",
    ["kind"],
)
FIRST_TOKEN = Histogram(
    "mint_engine_first_token_seconds",
    "From a request's arrival to its first token, loading included",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
DURATION = Histogram(
    "mint_engine_request_seconds",
    "From a request's arrival to its end",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)
STEP = Histogram(
    "mint_engine_step_seconds",
    "One step over a batch",
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
STEP_FAILURES = Counter("mint_engine_step_failures", "Steps that a defect ended")
STEP_ADAPTERS = Histogram(
    "mint_engine_step_adapters",
    "Different adapters in one step, the bare base counted as one",
    buckets=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64),
)
PREEMPTIONS = Counter(
    "mint_engine_preemptions",
    "Requests that gave their place up and went back to the queue: for pages that others needed, or for others' turn",
    ["reason"],
)
PREEMPTED_FOR_PAGES, PREEMPTED_FOR_TURN = PREEMPTIONS.labels("pages"), PREEMPTIONS.labels("turn")
REUSED_TOKENS = Counter(
    "mint_engine_reused_tokens",
    "Tokens whose keys and values were still cached when their request got a place, after a pause too",
)
IMBALANCES = Counter("mint_engine_imbalances", "Times that the engine's books did not add up")
RUNNING = Gauge("mint_engine_requests_running", "Requests decoding")
WAITING = Gauge("mint_engine_requests_waiting", "Requests queued")
CACHE_BYTES = Gauge("mint_engine_kv_cache_bytes", "Size of the KV cache")
SLOTS_BYTES = Gauge("mint_engine_slots_bytes", "Size of the adapter slots on the device")
