"""How tokens of log-probabilities are told to OpenAI's clients."""

from openai.types import Completion
from openai.types.chat import ChatCompletion

from mint_contracts.sampling_pb2 import Chunk, Finished, GenerateEvent, TokenLogprob
from mint_gateway.http.answered import CHAT, TEXT, Form, Head, Json, whole

WORD, HALF, NONE = (
    TokenLogprob(token_id=7, logprob=-0.25, token=b" sea"),
    TokenLogprob(token_id=8, logprob=-0.5, token=b"\xe2\x80"),
    TokenLogprob(token_id=9, logprob=-0.75),
)


def answer(form: Form) -> Json:
    """Three tokens: a word, a part of a character, and a row of the vocabulary that has no token."""
    first = TokenLogprob(token_id=7, logprob=-0.25, token=b" sea", top=[WORD, HALF])
    chunk = Chunk(text=" sea", token_ids=[7, 8, 9], logprobs=[first, HALF, NONE])
    events = [GenerateEvent(chunk=chunk), GenerateEvent(finished=Finished(reason=Finished.LENGTH))]
    return whole(Head(form, "1", "demo/pirate", 0, ""), events, 1)


def test_a_chat_tells_tokens_with_their_bytes() -> None:
    told = ChatCompletion.model_validate(answer(CHAT)).choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert [each.token for each in told.content] == [" sea", r"bytes:\xe2\x80", "token_id:9"]
    assert [each.bytes for each in told.content] == [list(b" sea"), [0xE2, 0x80], None]
    assert [(each.token, each.logprob) for each in told.content[0].top_logprobs] == [
        (" sea", -0.25),
        (r"bytes:\xe2\x80", -0.5),
    ]


def test_a_text_tells_tokens_as_they_are_written() -> None:
    told = Completion.model_validate(answer(TEXT)).choices[0].logprobs
    assert told is not None
    assert told.tokens == [" sea", r"bytes:\xe2\x80", "token_id:9"]
    assert told.top_logprobs is not None
    assert told.top_logprobs[0] == {" sea": -0.25, r"bytes:\xe2\x80": -0.5}
