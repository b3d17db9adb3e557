"""How tokens are chosen: reads a client's SamplingParams into a Sampling, checking every field."""

import math
import secrets
from collections.abc import Mapping
from ctypes import c_float

import msgspec

from mint_contracts.errors import InvalidRequest
from mint_contracts.sampling_pb2 import SamplingParams
from mint_contracts.transport import MOST_STOPS
from mint_engine.requests.grammar import Shape

DEFAULT_MAX_TOKENS = 256
MOST_LOGPROBS = 20
# Per prompt. They are sent in one message of about 20 bytes each, and gateways accept 64 MiB. Until they are read,
# each takes about 300 bytes of memory (see `prompt_logprobs`).
MOST_PROMPT_LOGPROBS = 1 << 20
LONGEST_STOP = 256
MOST_COMPLETIONS = 16
HOTTEST = 100.0
COLDEST = 1e-5  # below this, temperatures are greedy, as in vLLM: they would draw only from ties
LEAST_SHARE = 1e-6  # a top_p that the likeliest token alone reaches in any vocabulary
MOST_BIASES = 300
LARGEST_BIAS = 100.0
LARGEST_PENALTY = 2.0
LARGEST_REPETITION = 100.0
LEAST_REPETITION = c_float(1 / LARGEST_REPETITION).value  # rounded as a proto does; less might make logits overflow
# In characters. The longest ones take about 200 ms to compile.
LONGEST_SCHEMA, LONGEST_REGEX = 65_536, 8_192


class Sampling(msgspec.Struct, frozen=True):
    """How tokens are chosen; already validated. `seed` is always set."""

    max_tokens: int  # 0: the prompt is computed, and no token is chosen
    seed: int
    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    answer_stop: tuple[str, ...] = ()  # the same, but not in a thought
    logprobs: int | None = None  # how many of the most likely tokens besides the chosen one
    tempered_logprobs: bool = False  # of logits divided by the temperature, without filters
    prompt_logprobs: bool = False
    ignore_eos: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    shape: Shape | None = None  # what the completion must be
    n: int = 1  # completions; `siblings` makes a request of each

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is chosen, the first among equals: nothing is drawn.

        bfloat16 rounds many logits to equal ones: filters alone would keep all of them, and every seed draw another.
        """
        return self.temperature < COLDEST or self.top_k == 1 or self.top_p <= LEAST_SHARE

    @property
    def penalises(self) -> bool:
        """Whether penalties or biases change the logits before a token is chosen."""
        penalised = self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0
        return penalised or bool(self.logit_bias)

    @property
    def scored_at(self) -> float:
        """The temperature at which the log-probabilities of completions are taken."""
        return self.temperature if self.tempered_logprobs and self.temperature > 0 else 1.0


def read_sampling(params: SamplingParams, room: int, vocab_size: int) -> Sampling:
    """Return the checked parameters, with at most `room` new tokens, and a random seed if none was given.

    Raises InvalidRequest naming the field.
    """
    _within("max_tokens", params.max_tokens, 0, math.inf)
    _within("temperature", params.temperature, 0, HOTTEST)
    _within("top_k", params.top_k, 0, math.inf)
    _within("top_p", params.top_p, 0, 1)
    _within("min_p", params.min_p, 0, 1)
    _within("n", params.n, 0, MOST_COMPLETIONS)
    _within("logprobs", params.logprobs, 0, MOST_LOGPROBS)
    _within("repetition_penalty", params.repetition_penalty or 1.0, LEAST_REPETITION, LARGEST_REPETITION)
    _within("frequency_penalty", params.frequency_penalty, -LARGEST_PENALTY, LARGEST_PENALTY)
    _within("presence_penalty", params.presence_penalty, -LARGEST_PENALTY, LARGEST_PENALTY)
    stops = [*params.stop, *params.answer_stop]
    if len(stops) > MOST_STOPS:
        raise InvalidRequest("sampling.stop", f"has {len(stops)} strings; at most {MOST_STOPS} are allowed")
    for stop in stops:
        if not 0 < len(stop) <= LONGEST_STOP:
            raise InvalidRequest("sampling.stop", f"strings must have 1 to {LONGEST_STOP} characters")
    none = params.HasField("max_tokens") and not params.max_tokens and (params.echo or params.prompt_logprobs)
    return Sampling(
        max_tokens=0 if none else min(params.max_tokens or DEFAULT_MAX_TOKENS, room),
        seed=params.seed if params.HasField("seed") else secrets.randbits(64),
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p or 1.0,
        min_p=params.min_p,
        stop=tuple(params.stop),
        answer_stop=tuple(params.answer_stop),
        logprobs=params.logprobs if params.HasField("logprobs") else None,
        prompt_logprobs=params.prompt_logprobs,
        ignore_eos=params.ignore_eos,
        logit_bias=_biases(params.logit_bias, vocab_size),
        repetition_penalty=params.repetition_penalty or 1.0,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        shape=_shape(params),
        n=params.n or 1,
    )


def count_prompt_logprobs(tokens: int, sampling: Sampling) -> int:
    """Return the number of log-probabilities of a prompt of `tokens` tokens: each one's own, and its alternatives."""
    return tokens * (1 + (sampling.logprobs or 0)) if sampling.prompt_logprobs else 0


def check_prompt_logprobs(tokens: int, sampling: Sampling) -> None:
    """Raise InvalidRequest if a prompt of `tokens` tokens has more log-probabilities than can be sent."""
    count = count_prompt_logprobs(tokens, sampling)
    if count > MOST_PROMPT_LOGPROBS:
        raise InvalidRequest(
            "sampling.prompt_logprobs",
            f"would be {count} for {tokens} tokens with {sampling.logprobs or 0} likeliest each; at most "
            f"{MOST_PROMPT_LOGPROBS} are allowed: ask for fewer logprobs, or shorten the prompt",
        )


def _shape(params: SamplingParams) -> Shape | None:
    field = params.WhichOneof("shape")
    if field is None or (field == "json_object" and not params.json_object):
        return None
    if params.ignore_eos:
        raise InvalidRequest(
            "sampling.ignore_eos", f"cannot be combined with {field}, which decides where an answer ends"
        )
    if field == "json_object":
        return Shape(field, '{"type": "object"}')
    text, most = (params.regex, LONGEST_REGEX) if field == "regex" else (params.json_schema, LONGEST_SCHEMA)
    if len(text) > most:
        raise InvalidRequest(f"sampling.{field}", f"has {len(text)} characters; at most {most} are allowed")
    return Shape(field, text)


def _biases(biases: Mapping[int, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    if len(biases) > MOST_BIASES:
        raise InvalidRequest("sampling.logit_bias", f"has {len(biases)} tokens; at most {MOST_BIASES} are allowed")
    for token, bias in biases.items():
        if not 0 <= token < vocab_size:
            raise InvalidRequest("sampling.logit_bias", f"has token {token}; this base has 0 to {vocab_size - 1}")
        _within(f"logit_bias[{token}]", bias, -LARGEST_BIAS, LARGEST_BIAS)
    return tuple(sorted(biases.items()))


def _within(field: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # NaN fails, too
        bound = f"from {least:g} to {most:g}" if math.isfinite(most) else f"{least:g} or more"
        raise InvalidRequest(f"sampling.{field}", f"is {value:g}; it must be {bound}")
