"""A real engine on a loopback port over a tiny base, real PEFT adapters, and PEFT's own answers to compare with."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from mint_contracts import engine_pb2_grpc, sampling_pb2, sampling_pb2_grpc
from mint_contracts.errors import AdapterNotFound
from mint_contracts.records import Tier
from mint_contracts.settings import EngineSettings
from mint_contracts.source import Source
from mint_engine.adapters.check import Fit
from mint_engine.adapters.packed import Packed
from mint_engine.adapters.read import read_adapter
from mint_engine.residency.holding import AdapterStatus, Pinned
from mint_engine.residency.slots import Slots
from mint_engine.scheduling.integrity import find_imbalance
from mint_engine.scheduling.scheduler import Limits
from mint_engine.scheduling.stepper import Stepper
from mint_engine.serve import EngineServer, listen
from mint_engine.sources.local import LocalFolder
from tests.engine.copies import Lately, digest, put
from tests.engine.families import read_model
from tests.engine.made import edit_config, fill
from tests.engine.parallel.nodes import Worker, other_nodes

ALL_SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONTEXT = 192
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}<|start|>assistant\n"
)


def save_tokenizer(folder: Path) -> int:
    """Save a byte-level tokenizer of about 300 tokens with a chat template; return its size."""
    put(folder, "tokenizer", _save_tokenizer)
    return len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])


def _save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>", "<|start|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(
        ["the quick brown fox jumps over the lazy dog and then over the other dog"], trainer
    )
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token="<|end|>", additional_special_tokens=["<|start|>"]
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


_SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "initializer_range": 0.2, "eos_token_id": 0,
}  # fmt: skip


def save_base(folder: Path, *, max_shard_size: str = "50GB", **changes: Any) -> Path:
    """Save a random Llama, with weights large enough that its answers vary, and its tokenizer."""

    def make(folder: Path) -> None:
        vocab = save_tokenizer(folder)
        torch.manual_seed(3)
        options = _SIZES | {"num_hidden_layers": 2, "vocab_size": vocab} | changes
        LlamaForCausalLM(LlamaConfig(**options)).save_pretrained(folder, max_shard_size=max_shard_size)

    put(folder, f"Llama {max_shard_size} {sorted(changes.items())}", make)
    return folder


def save_sliding_base(folder: Path) -> Path:
    """Save a random Gemma 3 whose first and last of three layers see 20 tokens, and its tokenizer."""
    put(folder, "sliding", _save_sliding_base)
    return folder


def _save_sliding_base(folder: Path) -> None:
    vocab = save_tokenizer(folder)
    torch.manual_seed(3)
    config = Gemma3TextConfig(
        **_SIZES,
        num_hidden_layers=3,
        head_dim=16,
        vocab_size=vocab,
        tie_word_embeddings=False,  # else it repeats one token forever
        sliding_window=20,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    Gemma3ForCausalLM(config).save_pretrained(folder)


def save_adapter(base: Path, folder: Path, *, rank: int, targets: Sequence[str] = ALL_SEVEN, **options: Any) -> Path:
    """Save a random adapter with PEFT."""

    def make(folder: Path) -> None:
        model = read_model(base)
        changes = {"lora_alpha": 2 * rank, **options}
        peft = get_peft_model(
            model, LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=list(targets), **changes)
        )
        fill(peft, rank + len(targets), 0.15)
        peft.save_pretrained(str(folder))

    put(folder, f"adapter {rank} {list(targets)} {sorted(options.items())} {digest(base)}", make)
    edit_config(folder, base_model_name_or_path=str(base))
    return folder


def packed(folder: Path, slots: Slots) -> Packed:
    """Read a PEFT folder as the engine's residency does."""
    return read_adapter(LocalFolder(folder, str(folder)), Fit(slots.modules, slots.max_rank), slots.dtype)


@dataclass
class FixedHolder:
    """A residency that gives every adapter a slot of its own, loaded once; counts each adapter's users."""

    slots: Slots
    adapters: dict[str, Path]
    users: dict[str, int] = field(default_factory=dict)
    clients: set[str] = field(default_factory=set)  # that have asked

    def __post_init__(self) -> None:
        self.places = {name: slot for slot, name in enumerate(self.adapters)}
        self.revisions: dict[str, str] = {}
        for name, folder in self.adapters.items():
            self.load(name, folder)

    def load(self, name: str, folder: Path) -> None:
        """Load a PEFT folder into the slot of that name."""
        revision = packed(folder, self.slots)
        self.slots.load(self.places[name], revision)
        self.revisions[name] = revision.revision

    def clear(self, name: str) -> None:
        """Empty the slot of that name: requests for it then get the bare base."""
        self.slots.clear(self.places[name])
        self.revisions[name] = "none"

    @asynccontextmanager
    async def hold(self, adapter: str, source: Source | None = None, client: str = "") -> AsyncIterator[Pinned]:
        if adapter not in self.places:
            raise AdapterNotFound(f"adapter {adapter}", "is in no wave and no store")
        self.clients.add(client)
        self.users[adapter] = self.users.get(adapter, 0) + 1
        try:
            yield Pinned(slot=self.places[adapter], revision=self.revisions[adapter])
        finally:
            self.users[adapter] -= 1

    def states(self) -> list[AdapterStatus]:
        return [
            AdapterStatus(
                name, self.revisions[name], Tier.DEVICE, int(self.slots.ranks[:, slot].max()), self.users.get(name, 0)
            )
            for name, slot in self.places.items()
        ]


@dataclass(frozen=True)
class Running:
    """A serving engine, and stubs to talk to it."""

    server: EngineServer
    holder: FixedHolder
    workers: list[Worker]  # the group's other nodes
    channel: grpc.aio.Channel
    sampler: "sampling_pb2_grpc.SamplerAsyncStub"
    engine: "engine_pb2_grpc.EngineAsyncStub"

    @property
    def stepper(self) -> Stepper:
        parts = self.server._services.parts
        assert parts is not None
        return parts.stepper

    @property
    def free_pages(self) -> int:
        return self.server.generation.scheduler.prefix.available

    @property
    def all_pages(self) -> int:
        return self.server.generation.scheduler.pages.total


def settings_for(base: Path, **changes: Any) -> EngineSettings:
    options: dict[str, Any] = {
        "base_model": "tests/tiny",
        "source": Source(uri=f"file://{base}"),
        "device": "cpu",
        "dtype": "float32",
        "context_length": CONTEXT,
        "kv_cache_bytes": 4 << 20,
        "max_rank": 16,
        "device_slots": 6,
        "host_bytes": 1 << 20,
        "disk_bytes": 1 << 20,
    }
    return EngineSettings(**(options | changes))


@asynccontextmanager
async def running(
    base: Path, adapters: dict[str, Path] | None = None, limits: Limits | None = None, **settings: Any
) -> AsyncIterator[Running]:
    """Serve `base` with `adapters` in its slots; at the end, drain and check that the books balance."""
    told = settings_for(base, **settings)
    with other_nodes(told) as group:
        server = await listen(told, "tiny-0", 0, limits, group.endpoint)
        try:
            holder = await server.load(base, lambda _, slots: FixedHolder(slots, adapters or {}))
            assert isinstance(holder, FixedHolder)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                sampler, engine = sampling_pb2_grpc.SamplerStub(channel), engine_pb2_grpc.EngineStub(channel)
                yield Running(server, holder, group.workers, channel, sampler, engine)
        finally:
            await server.drain(30)
    scheduler = server.generation.scheduler
    assert not scheduler.busy
    assert find_imbalance(scheduler) == ""
    assert scheduler.prefix.available == scheduler.pages.total
    assert not any(holder.users.values())


@dataclass(frozen=True)
class Answer:
    """One completion as a client received it."""

    started: sampling_pb2.Started
    finished: sampling_pb2.Finished
    pieces: tuple[str, ...]
    tokens: tuple[int, ...]
    scores: tuple[sampling_pb2.TokenLogprob, ...]

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def logprobs(self) -> list[float]:
        return [score.logprob for score in self.scores]


async def ask(engine: Running, prompt: Sequence[int] | str, adapter: str = "", **sampling: Any) -> Answer:
    """Send one request and collect its stream; raises grpc.aio.AioRpcError."""
    request = sampling_pb2.GenerateRequest(adapter=adapter, sampling=sampling_pb2.SamplingParams(**sampling))
    if isinstance(prompt, str):
        request.text = prompt
    else:
        request.tokens.ids.extend(prompt)
    return await collect(engine, request)


async def collect(engine: Running, request: sampling_pb2.GenerateRequest) -> Answer:
    """Collect a request's stream: Started first, Finished last."""
    events = [event async for event in engine.sampler.Generate(request, timeout=60)]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["started", *["chunk"] * (len(events) - 2), "finished"]
    chunks = [event.chunk for event in events[1:-1]]
    return Answer(
        started=events[0].started,
        finished=events[-1].finished,
        pieces=tuple(chunk.text for chunk in chunks),
        tokens=tuple(token for chunk in chunks for token in chunk.token_ids),
        scores=tuple(score for chunk in chunks for score in chunk.logprobs),
    )


def peft_model(base: Path, adapter: Path | None, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The base by transformers, with the adapter by PEFT."""
    model = read_model(base, dtype)
    return (model if adapter is None else PeftModel.from_pretrained(model, str(adapter))).eval()


_LATELY = Lately()


def _read_once(base: Path, adapter: Path | None, dtype: torch.dtype) -> torch.nn.Module:
    """Return the model; equal files are read once."""
    key = (digest(base), "" if adapter is None else digest(adapter), dtype)
    found: torch.nn.Module = _LATELY.get(key, lambda: peft_model(base, adapter, dtype))
    return found


@torch.inference_mode()
def peft_answer(
    base: Path, adapter: Path | None, prompt: Sequence[int], count: int
) -> tuple[tuple[int, ...], list[float]]:
    """Greedy tokens and their log-probabilities, each step computed from the complete sequence."""
    model, tokens, scores = _read_once(base, adapter, torch.float32), list(prompt), []
    for _ in range(count):
        logits = torch.log_softmax(model(input_ids=torch.tensor([tokens])).logits[0, -1].float(), -1)
        tokens.append(int(logits.argmax()))
        scores.append(float(logits[tokens[-1]]))
    return tuple(tokens[len(prompt) :]), scores


@torch.inference_mode()
def peft_scores(
    base: Path, adapter: Path | None, tokens: Sequence[int], dtype: torch.dtype = torch.float32
) -> list[float]:
    """The log-probability of each token from the second on."""
    model, row = _read_once(base, adapter, dtype), torch.tensor([tokens])
    scores = torch.log_softmax(model(input_ids=row).logits[0].float(), -1)
    return [float(score) for score in scores[:-1].gather(1, row[0, 1:, None])[:, 0]]
