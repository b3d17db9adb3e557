"""Converting an answer's events to OpenAI's format, complete or piece by piece: pure.

In log-probabilities, tokens are spelled as by engines; tokens that are not complete characters by their bytes
("bytes:\\xe2\\x80", as OpenAI does), and tokens without bytes by their ids ("token_id:42", as vLLM does on request).
`text_offset` is in characters: part of a character has that character's offset, and a special token that the text
does not show has the next token's. `system_fingerprint` is the digest of the adapter's revision that answered.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from mint_contracts.errors import MintError, PromptTooLong
from mint_contracts.sampling_pb2 import Chunk, Finished, GenerateEvent, GenerateRequest, Started, TokenLogprob
from mint_gateway.http.calls import Call
from mint_gateway.http.parsing import Parser, Parsing, Part, Piece, piece_of
from mint_gateway.http.thoughts import Thought

Json = dict[str, Any]

_CODES = {PromptTooLong.__name__: "context_length_exceeded"}  # OpenAI's code, which clients check; others are ours
_REASONS = {Finished.STOP: "stop", Finished.LENGTH: "length"}

ECHOED = 256  # an echoed prompt's tokens in one piece of a stream: with twenty log-probabilities each, a megabyte


class Form(msgspec.Struct, frozen=True):
    """The format of one of the two endpoints' answers."""

    prefix: str  # of an answer's id
    kind: str
    kind_of_piece: str
    is_chat: bool


class _Scores(msgspec.Struct, frozen=True):
    """Log-probabilities of a completion's tokens and of the prompt's before them, whose first token has none.

    `before` is the number of characters of the text before the completion.
    """

    tokens: Sequence[TokenLogprob] = ()
    prompt: Sequence[TokenLogprob] = ()
    before: int = 0


TEXT = Form("cmpl-", "text_completion", "text_completion", is_chat=False)
CHAT = Form("chatcmpl-", "chat.completion", "chat.completion.chunk", is_chat=True)


class Head(msgspec.Struct, frozen=True):
    """What every piece of one answer has in common."""

    form: Form
    request_id: str
    model: str  # as requested
    created: int  # when the answer began, in Unix seconds
    revision: str  # the one that answers; empty for the bare base
    parsing: Parsing | None = None  # if the answer may have a thought or call functions
    nonce: str = ""  # for its calls' ids, random per answer: clients may use one request id for all their requests

    @property
    def thinks(self) -> bool:
        """Whether completions may have a thought."""
        return self.parsing is not None and self.parsing.thought != Started.NO_THOUGHT

    def piece(self, kind: str, choices: Sequence[Json]) -> Json:
        """Return one JSON document of the answer."""
        return {
            "id": self.form.prefix + self.request_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.revision or None,
            "choices": choices,
        }

    def called(self, index: int, place: int, call: Call) -> Json:
        """Return a completion's call; its id is the same each time."""
        name = hashlib.sha256(f"{self.nonce}/{index}/{place}".encode()).hexdigest()
        short = self.parsing is not None and self.parsing.calls is not None and self.parsing.calls.short_ids
        return {
            "id": name[:9] if short else f"call_{name[:24]}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }


class Echo(msgspec.Struct, frozen=True):
    """A prompt that is echoed before its completions."""

    text: str = ""
    logprobs: Sequence[TokenLogprob] = ()  # of its tokens, if requested; the first has none


def echo(request: GenerateRequest, started: Started) -> Echo:
    """Return the echo that a request asks for: a text prompt as it was sent, a token prompt decoded.

    For a chat it is the last message if that is the assistant's, as in vLLM.
    """
    if not request.sampling.echo:
        return Echo()
    if request.HasField("chat"):
        last = request.chat.messages[-1]
        return Echo(last.content if last.role == "assistant" else "")
    text = request.text or b"".join(started.prompt).decode(errors="replace")
    if not request.sampling.prompt_logprobs:
        return Echo(text)
    token = b"".join(started.prompt[:1])
    first = TokenLogprob(token_id=next(iter(request.tokens.ids), 0), token=token, text_offset=0)
    return Echo(text, (first, *started.prompt_logprobs))


def revision(started: Iterable[Started]) -> str:
    """Return the revision that answered; empty if a request's prompts had different ones, as during an update."""
    found = {each.revision for each in started}
    return found.pop() if len(found) == 1 else ""


def whole(head: Head, echoes: Mapping[int, Echo], events: Iterable[GenerateEvent], completions: int) -> Json:
    """Return the complete answer of a request from all its events, with `completions` for each prompt."""
    texts: dict[int, list[Piece]] = {}
    logprobs: dict[int, list[TokenLogprob]] = {}
    ends: dict[int, Finished] = {}
    for event in events:
        if event.HasField("chunk"):
            texts.setdefault(event.chunk.index, []).append(piece_of(event.chunk))
            logprobs.setdefault(event.chunk.index, []).extend(event.chunk.logprobs)
        elif event.HasField("finished"):
            ends[event.finished.index] = event.finished
    choices, thoughts = [], 0
    for index, end in sorted(ends.items()):
        prompt, pieces = echoes[index // completions], texts.get(index, [])
        scores = _Scores(logprobs.get(index, ()), prompt.logprobs, len(prompt.text))
        if head.parsing is not None:
            parser = head.parsing.parser()
            content: Json = {"message": _parsed(head, prompt, parser, pieces, end)}
            thoughts += parser.thought_tokens
        else:
            text = prompt.text + "".join(piece.text for piece in pieces)
            content = {"message": {"role": "assistant", "content": text}} if head.form.is_chat else {"text": text}
        reason = _reason(end, calls="tool_calls" in content.get("message", ()))
        choices.append(_choice(head.form, index, content, scores, reason))
    return head.piece(head.form.kind, choices) | {"usage": usage(head, ends.values(), completions, thoughts)}


def _parsed(head: Head, prompt: Echo, parser: Parser, pieces: Sequence[Piece], end: Finished) -> Json:
    """Return a chat's completion. Its content is null if it has only a thought or calls, and "" if it is empty."""
    parts = parser.whole(pieces, cut=end.reason == Finished.LENGTH)
    calls = [part for part in parts if isinstance(part, Call)]
    content = "".join((prompt.text, *(part for part in parts if isinstance(part, str))))
    message: Json = {"role": "assistant", "content": content or (None if calls or parser.thought else "")}
    if head.thinks:
        message["reasoning"] = "".join(part.text for part in parts if isinstance(part, Thought)) or None
    called = [head.called(end.index, place, call) for place, call in enumerate(calls)]
    return message | ({"tool_calls": called} if called else {})


def beginning(head: Head, indices: Iterable[int], prompt: Echo) -> Iterator[Json]:
    """Yield a stream's first pieces for some completions: the role in a chat, else the echo if there is one.

    All log-probabilities of a long prompt would take hundreds of megabytes at once, for each completion.
    """
    if head.form.is_chat:
        nothing = "" if head.parsing is None else None
        content: Json = {"delta": {"role": "assistant", "content": prompt.text or nothing}}
    elif prompt.text or prompt.logprobs:
        content = {"text": prompt.text}
    else:
        return
    for index in indices:
        first = _choice(head.form, index, content, _Scores((), prompt.logprobs[:ECHOED]), None)
        yield head.piece(head.form.kind_of_piece, [first])
        for at in range(ECHOED, len(prompt.logprobs), ECHOED):
            more = _choice(head.form, index, {"text": ""}, _Scores(prompt.logprobs[at : at + ECHOED]), None)
            yield head.piece(head.form.kind_of_piece, [more])


def chunk(head: Head, event: Chunk, before: int) -> Json:
    """Return a stream's piece for further tokens of a completion; `before` is the length of its echo."""
    content: Json = {"delta": {"content": event.text}} if head.form.is_chat else {"text": event.text}
    choice = _choice(head.form, event.index, content, _Scores(event.logprobs, before=before), None)
    return head.piece(head.form.kind_of_piece, [choice])


def read(head: Head, index: int, parts: Sequence[Part], before: int, logprobs: Sequence[TokenLogprob]) -> list[Json]:
    """Return a stream's pieces for parts of a completion; it has sent `before` calls already.

    Log-probabilities go with the first piece, or into one of their own if their tokens may yet become a call.
    """
    deltas: list[Json] = []
    for part in parts:
        if isinstance(part, str):
            deltas.append({"content": part})
            continue
        if isinstance(part, Thought):
            deltas.append({"reasoning": part.text})
            continue
        deltas.append({"tool_calls": [{"index": before} | head.called(index, before, part)]})
        before += 1
    if logprobs and not deltas:
        deltas = [{}]
    scores = (_Scores(() if place else logprobs) for place in range(len(deltas)))
    choices = [
        _choice(head.form, index, {"delta": delta}, score, None) for delta, score in zip(deltas, scores, strict=True)
    ]
    return [head.piece(head.form.kind_of_piece, [choice]) for choice in choices]


def end(head: Head, event: Finished, *, calls: bool = False, thought: bool = False) -> Json:
    """Return a stream's piece for the end of one completion; `calls` and `thought` are whether it had any.

    If it could have had some but had none, its content is an empty text rather than null.
    """
    delta = {"content": ""} if head.parsing is not None and not (calls or thought) else {}
    content: Json = {"delta": delta} if head.form.is_chat else {"text": ""}
    choice = _choice(head.form, event.index, content, _Scores(), _reason(event, calls=calls))
    return head.piece(head.form.kind_of_piece, [choice])


def counts(head: Head, ends: Iterable[Finished], completions: int, thoughts: int) -> Json:
    """Return a stream's last piece for a client that asked for usage."""
    return head.piece(head.form.kind_of_piece, []) | {"usage": usage(head, ends, completions, thoughts)}


def usage(head: Head, ends: Iterable[Finished], completions: int, thoughts: int) -> Json:
    """Return the token counts of all prompts (each counted once), the cached ones, and those of all completions.

    `thoughts` are the tokens of these that were thoughts; the count is left out where there can be none.
    """
    ends = list(ends)
    prompts = {each.index // completions: each for each in ends}.values()
    prompt, made = sum(each.prompt_tokens for each in prompts), sum(each.completion_tokens for each in ends)
    return {
        "prompt_tokens": prompt,
        "prompt_tokens_details": {"cached_tokens": sum(each.cached_tokens for each in prompts)},
        "completion_tokens": made,
        "total_tokens": prompt + made,
    } | ({"completion_tokens_details": {"reasoning_tokens": thoughts}} if head.thinks else {})


def so_far(prompt_tokens: int, made: int) -> Json:
    """Return the usage of one completion so far, for a client that asked for it with each piece."""
    counted = {"prompt_tokens": prompt_tokens, "completion_tokens": made, "total_tokens": prompt_tokens + made}
    return {"usage": counted}


def refusal(error: MintError) -> Json:
    """Return an error's response body."""
    kind = "invalid_request_error" if error.http_status < 500 else "server_error"
    return {
        "error": {"message": str(error), "type": kind, "param": None, "code": _CODES.get(error.reason, error.reason)}
    }


def _reason(event: Finished, *, calls: bool) -> str | None:
    """Return why a completion ended. "length" takes precedence over calls."""
    reason = _REASONS.get(event.reason)
    return "tool_calls" if calls and reason == "stop" else reason


def _choice(form: Form, index: int, content: Json, scores: _Scores, reason: str | None) -> Json:
    logprobs = None
    if scores.tokens or scores.prompt:
        logprobs = _chat_logprobs(scores.tokens) if form.is_chat else _text_logprobs(scores)
    return {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}


def _token(of: TokenLogprob) -> str:
    if not of.token:
        return f"token_id:{of.token_id}"
    try:
        return of.token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in of.token)


def _chat_logprobs(logprobs: Sequence[TokenLogprob]) -> Json:
    def scored(token: TokenLogprob) -> Json:
        return {"token": _token(token), "logprob": token.logprob, "bytes": list(token.token) or None}

    content = [scored(each) | {"top_logprobs": [scored(other) for other in each.top]} for each in logprobs]
    return {"content": content, "refusal": None}


def _likeliest(token: TokenLogprob) -> dict[str, float]:
    """Return the likeliest tokens and the sampled one, which clients look up here; duplicates keep the likelier."""
    likeliest: dict[str, float] = {}
    for each in (*token.top, token):
        likeliest.setdefault(_token(each), each.logprob)
    return likeliest


def _text_logprobs(scores: _Scores) -> Json:
    every = (*scores.prompt, *scores.tokens)
    known = every[1:] if scores.prompt else every
    nothing = [None] if scores.prompt else []
    offsets = [each.text_offset for each in scores.prompt]
    offsets += [scores.before + each.text_offset for each in scores.tokens]
    has_offsets = all(each.HasField("text_offset") for each in every)  # engines of earlier versions send none
    return {
        "tokens": [_token(each) for each in every],
        "token_logprobs": [*nothing, *(each.logprob for each in known)],
        "top_logprobs": [*nothing, *(_likeliest(each) for each in known)],
        "text_offset": offsets if has_offsets else None,
    }
