"""Converting OpenAI's requests to GenerateRequests: pure.

The fields are those of https://platform.openai.com/docs/api-reference/completions/create and /chat/create. Additional
fields are named as in vLLM (`top_k`, `min_p`, `repetition_penalty`, `structured_outputs`, `ignore_eos`, `cache_salt`,
`chat_template_kwargs` and `include_reasoning`), and `base_model` says which base the adapter `model` belongs to if
its name is ambiguous. Fields that would change an answer and are not supported are refused, not ignored.
"""

import json
from collections.abc import Container, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from mint_contracts import sampling_pb2
from mint_contracts.byte_counts import in_units
from mint_contracts.errors import InvalidRequest
from mint_contracts.transport import MOST_STOPS, MOST_TOOL_CHARACTERS
from mint_gateway.http.messages import Message, message
from mint_gateway.http.tools import FORMS, TAG_END, Choice, Tool, Tools, checked

# Ignored fields: they describe the client or its billing, and change no answer in requests that do not define them.
PASSED_OVER = frozenset(
    (
        *("metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        *("safety_identifier", "service_tier", "store", "user"),
    )
)
# Unsupported fields, unless a kind of request defines them, and their values that ask for nothing.
NOT_DONE: dict[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}

MOST_PROMPTS = 128  # in one request: each counts as one of the gateway's requests in flight
MOST_COPIED = 16 << 20  # bytes of all other fields: the request of each prompt has its own

_MOST = 2**31 - 1
_Count = Annotated[int, Meta(ge=1, le=_MOST)]
_Natural = Annotated[int, Meta(ge=0, le=_MOST)]
# Replaces OpenAI's 0 (only the likeliest token) and values that a proto's float would round to 0, because by gRPC 0
# turns the filter off.
_LEAST_TOP_P = 1e-9
_TO_ITS_END = _MOST  # tokens of a chat's answer if no number is given: engines use what the context has room for

_T = TypeVar("_T")


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream sends besides the answer. `include_obfuscation` (padding against eavesdroppers) has no effect."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's: usage with each piece too, if include_usage is set
    include_obfuscation: bool | None = None


class TextFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Any text."""


class ObjectFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class NamedSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON schema. It is enforced whatever `strict` says; the model does not see its name and description."""

    schema: dict[str, Any]
    name: str = ""
    description: str | None = None
    strict: bool | None = None


class SchemaFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    """JSON that follows a schema."""

    json_schema: NamedSchema


class StructuredOutputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A constraint on the answer in vLLM's format: at most one of these."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    json_object: bool | None = None


class Delivery(msgspec.Struct, frozen=True):
    """How an answer is delivered: all that is kept of a request until then, besides what engines get.

    A prompt's tokens, and functions' schemas, take up to twenty times as much in Python as there.
    """

    model: str
    n: int
    stream: bool
    stream_options: StreamOptions
    shows_thoughts: bool


class OpenAIRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of both kinds of requests."""

    model: Annotated[str, Meta(min_length=1)]
    base_model: str = ""
    max_tokens: _Count | None = None
    temperature: float = 1.0
    top_p: Annotated[float, Meta(ge=0)] = 1.0
    top_k: Annotated[int, Meta(ge=-1, le=_MOST)] = 0  # -1 turns it off too, as in vLLM
    min_p: float = 0.0
    n: _Count = 1
    echo: bool = False
    logit_bias: dict[str, float] = {}
    # Values below the engines' minimum must not become 0, which turns it off by gRPC.
    repetition_penalty: Annotated[float, Meta(ge=0.01)] = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    cache_salt: Annotated[str, Meta(max_length=256)] = ""
    response_format: TextFormat | ObjectFormat | SchemaFormat = TextFormat()
    structured_outputs: StructuredOutputs = StructuredOutputs()
    stop: str | list[str] = msgspec.field(default_factory=list)
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    def delivery(self, *, shows_thoughts: bool = True) -> Delivery:
        """Return how to deliver the answer; `shows_thoughts`: with its thoughts."""
        return Delivery(self.model, self.n, self.stream, self.stream_options, shows_thoughts)


class TextRequest(OpenAIRequest, frozen=True, kw_only=True):
    """A request for /v1/completions."""

    prompt: str | list[str | _Natural | list[_Natural]]
    max_tokens: _Natural | None = None  # 0 only with `echo`: return the prompt alone
    logprobs: _Natural | None = None


class ChatRequest(OpenAIRequest, frozen=True, kw_only=True):
    """A request for /v1/chat/completions. `max_completion_tokens` is the newer name of `max_tokens`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: _Count | None = None
    logprobs: bool = False
    top_logprobs: _Natural = 0
    tools: list[Tool] = []
    tool_choice: Choice | None = None
    parallel_tool_calls: bool = True
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] = "none"
    chat_template_kwargs: dict[str, Any] = {}
    include_reasoning: bool = True

    def called(self) -> Tools:
        """Return the request's tools. Raises InvalidRequest."""
        return checked(self.tools, self.tool_choice, parallel=self.parallel_tool_calls)


def read(body: bytes, kind: type[_T]) -> _T:
    """Parse a body as one of the two kinds. Raises InvalidRequest, which names the field."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
        return msgspec.convert(_asked_for(fields, kind), kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InvalidRequest("body", f"is invalid: {error}") from error


def text_requests(asked: TextRequest, bases: Container[str]) -> list[sampling_pb2.GenerateRequest]:
    """Convert a request for /v1/completions, one result per prompt; `bases` are the base models served.

    Raises InvalidRequest.
    """
    if asked.max_tokens == 0 and not asked.echo:
        raise InvalidRequest("max_tokens", "is 0, which asks for nothing; set echo, or ask for at least one token")
    prompts, common, requests = _prompts(asked.prompt), _request(asked, asked.max_tokens, bases), []
    if asked.logprobs is not None:
        common.sampling.logprobs, common.sampling.prompt_logprobs = asked.logprobs, asked.echo
    common.sampling.echo = asked.echo
    copied = common.ByteSize() * len(prompts)
    if copied > MOST_COPIED:
        problem = f"holds {len(prompts)} prompts, for which the other parameters would take {in_units(copied)} in all"
        advice = "send fewer prompts in one request, or make those parameters smaller"
        raise InvalidRequest("prompt", f"{problem}; {in_units(MOST_COPIED)} are allowed: {advice}")
    for prompt in prompts:
        request = sampling_pb2.GenerateRequest()
        request.CopyFrom(common)
        if isinstance(prompt, str):
            request.text = prompt
        else:
            request.tokens.ids.extend(prompt)
        requests.append(request)
    return requests


def chat_request(asked: ChatRequest, bases: Container[str]) -> sampling_pb2.GenerateRequest:
    """Convert a request for /v1/chat/completions. Raises InvalidRequest."""
    request = _request(asked, asked.max_completion_tokens or asked.max_tokens or _TO_ITS_END, bases)
    request.chat.messages.extend(message(each, f"messages[{at}]") for at, each in enumerate(asked.messages))
    effort = {} if asked.reasoning_effort == "none" else {"reasoning_effort": asked.reasoning_effort}
    if variables := effort | asked.chat_template_kwargs:
        request.chat.template_variables = _written("chat_template_kwargs", variables)
    request.chat.thoughts = request.chat.channels = True  # also if they are left out: they are no part of the answer
    request.sampling.echo = asked.echo
    _tools(asked.called(), request)
    if asked.logprobs:
        request.sampling.logprobs = asked.top_logprobs
    elif asked.top_logprobs:
        raise InvalidRequest("top_logprobs", "needs logprobs to be true")
    return request


def _asked_for(fields: dict[str, Any], kind: type) -> dict[str, Any]:
    """Return the fields that ask for something; null means a field's default. Raises InvalidRequest."""
    own = {field.name for field in msgspec.structs.fields(kind)}
    passed = PASSED_OVER - own
    kept = {name: value for name, value in fields.items() if value is not None and name not in passed}
    for name in kept.keys() & (NOT_DONE.keys() - own):
        value = kept.pop(name)
        if value not in NOT_DONE[name]:
            raise InvalidRequest(name, "is not supported; leave it out")
    return kept


def _request(asked: OpenAIRequest, max_tokens: int | None, bases: Container[str]) -> sampling_pb2.GenerateRequest:
    base, adapter = _meant(asked.model, asked.base_model, bases)
    request = sampling_pb2.GenerateRequest(base_model=base, adapter=adapter, cache_salt=asked.cache_salt)
    sampling = request.sampling
    if max_tokens is not None:
        sampling.max_tokens = max_tokens
    sampling.n = asked.n
    sampling.temperature, sampling.top_p = asked.temperature, max(asked.top_p, _LEAST_TOP_P)
    sampling.top_k, sampling.min_p, sampling.ignore_eos = max(0, asked.top_k), asked.min_p, asked.ignore_eos
    sampling.repetition_penalty = asked.repetition_penalty
    sampling.frequency_penalty, sampling.presence_penalty = asked.frequency_penalty, asked.presence_penalty
    sampling.logit_bias.update(_biases(asked.logit_bias))
    sampling.stop.extend([asked.stop] if isinstance(asked.stop, str) else asked.stop)
    if asked.seed is not None:
        sampling.seed = asked.seed % 2**64
    _shape(asked, sampling)
    return request


def _tools(tools: Tools, request: sampling_pb2.GenerateRequest) -> None:
    """Set the functions that may be called, and constrain the answer if one must be. Raises InvalidRequest."""
    sampling, written = request.sampling, tools.functions_json
    if len(written) > MOST_TOOL_CHARACTERS:  # checked before their schemas are merged
        raise InvalidRequest("tools", f"have {len(written)} characters; at most {MOST_TOOL_CHARACTERS} are accepted")
    request.chat.tools = written
    if tools.choice != "none" and sampling.WhichOneof("shape"):
        raise InvalidRequest(
            "tools", "cannot be combined with response_format or structured_outputs, unless tool_choice is none"
        )
    if tools.held:
        sampling.json_schema = tools.schema
    elif tools.choice == "auto":
        request.chat.calls = FORMS[0]
        request.chat.or_calls.extend(FORMS[1:])
        # The call before it is still read, and what follows is dropped anyway, so stopping only saves work.
        if not tools.parallel and len(sampling.stop) < MOST_STOPS:
            sampling.answer_stop.append(TAG_END)


def _shape(asked: OpenAIRequest, sampling: sampling_pb2.SamplingParams) -> None:
    """Set the constraint on the answer. Raises InvalidRequest."""
    form, more = asked.response_format, asked.structured_outputs
    wanted: list[tuple[str, object]] = [("json_schema", more.json), ("regex", more.regex)]
    wanted += [("json_object", True)] if more.json_object or isinstance(form, ObjectFormat) else []
    wanted += [("json_schema", form.json_schema.schema)] if isinstance(form, SchemaFormat) else []
    wanted = [(name, value) for name, value in wanted if value is not None]
    if len(wanted) > 1:
        raise InvalidRequest("response_format", "and structured_outputs ask for more than one format; give only one")
    for name, value in wanted:
        setattr(sampling, name, _written("json_schema", value) if isinstance(value, dict) else value)


def _written(name: str, value: dict[str, Any]) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)  # engines count characters
    except RecursionError:
        raise InvalidRequest(name, "is nested too deeply") from None


def _biases(biases: dict[str, float]) -> dict[int, float]:
    """Return biases by token id; JSON has the ids as text. Raises InvalidRequest."""
    for token in biases:
        if not (token.isascii() and token.isdecimal() and len(token) < 10):
            raise InvalidRequest("logit_bias", f"names {token[:100]!r}, which is not a token ID")
    return {int(token): bias for token, bias in biases.items()}


def _prompts(prompt: str | list[str | int | list[int]]) -> Sequence[str | list[int]]:
    """Return the prompts: a text or a list of tokens is one; a list of those is several. Raises InvalidRequest."""
    if isinstance(prompt, str):
        return [prompt]
    tokens = [each for each in prompt if isinstance(each, int)]
    prompts = [each for each in prompt if not isinstance(each, int)]
    if tokens and prompts:
        raise InvalidRequest("prompt", "mixes single tokens with whole prompts; send a list of tokens, or of prompts")
    if len(prompts) > MOST_PROMPTS:
        raise InvalidRequest("prompt", f"holds {len(prompts)} prompts; send {MOST_PROMPTS} at most in one request")
    return prompts or [tokens]


def _meant(model: str, base: str, bases: Container[str]) -> tuple[str, str]:
    """Return the base model and the adapter asked for; the name of a base alone means the bare base."""
    if base:
        return base, "" if model == base else model
    return (model, "") if model in bases else ("", model)
