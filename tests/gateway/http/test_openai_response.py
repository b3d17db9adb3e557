"""How tokens of log-probabilities, and an echoed prompt, are sent to OpenAI's clients."""

from openai.types import Completion
from openai.types.chat import ChatCompletion

from mint_contracts.sampling_pb2 import Chunk, Finished, GenerateEvent, GenerateRequest, Started, TokenLogprob
from mint_gateway.http.openai_response import (
    CHAT,
    ECHOED,
    TEXT,
    Echo,
    Form,
    Head,
    Json,
    beginning,
    chunk,
    echo,
    whole,
)

WORD, HALF, NONE = (
    TokenLogprob(token_id=7, logprob=-0.25, token=b" sea"),
    TokenLogprob(token_id=8, logprob=-0.5, token=b"\xe2\x80"),
    TokenLogprob(token_id=9, logprob=-0.75),
)


STARTED = Started(prompt=[b"The", b"\xe2\x80", b"\x99s"], prompt_logprobs=[HALF, TokenLogprob(token=b"\x99s")])


def answer(form: Form, prompt: Echo) -> Json:
    """Return an answer of three tokens: a word, part of a character, and a vocabulary row without a token."""
    first = TokenLogprob(token_id=7, logprob=-0.25, token=b" sea", top=[WORD, HALF])
    chunk = Chunk(text=" sea", token_ids=[7, 8, 9], logprobs=[first, HALF, NONE])
    events = [GenerateEvent(chunk=chunk), GenerateEvent(finished=Finished(reason=Finished.LENGTH))]
    return whole(Head(form, "1", "demo/pirate", 0, ""), {0: prompt}, events, 1)


def asking(*, logprobs: bool) -> GenerateRequest:
    request = GenerateRequest()
    request.tokens.ids.extend([4, 8, 6])
    request.sampling.echo, request.sampling.prompt_logprobs = True, logprobs
    return request


def test_a_chat_tells_tokens_with_their_bytes() -> None:
    logprobs = ChatCompletion.model_validate(answer(CHAT, Echo())).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [each.token for each in logprobs.content] == [" sea", r"bytes:\xe2\x80", "token_id:9"]
    assert [each.bytes for each in logprobs.content] == [list(b" sea"), [0xE2, 0x80], None]
    assert [(each.token, each.logprob) for each in logprobs.content[0].top_logprobs] == [
        (" sea", -0.25),
        (r"bytes:\xe2\x80", -0.5),
    ]


def test_a_text_tells_tokens_as_they_are_written() -> None:
    logprobs = Completion.model_validate(answer(TEXT, Echo())).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == [" sea", r"bytes:\xe2\x80", "token_id:9"]
    assert logprobs.top_logprobs == [
        {" sea": -0.25, r"bytes:\xe2\x80": -0.5},
        {r"bytes:\xe2\x80": -0.5},
        {"token_id:9": -0.75},
    ]


def test_the_token_that_came_is_among_a_texts_likeliest() -> None:
    """ "There may be up to logprobs+1 elements", says OpenAI; two of them may be spelled the same."""
    first = TokenLogprob(token_id=5, logprob=-3, token=b" lake", top=[WORD, TokenLogprob(logprob=-2, token=b" sea")])
    piece = chunk(Head(TEXT, "1", "demo/pirate", 0, ""), Chunk(text=" lake", logprobs=[first]), 0)
    assert piece["choices"][0]["logprobs"]["top_logprobs"] == [{" sea": -0.25, " lake": -3}]


def test_a_prompt_that_is_wanted_again_comes_first_with_its_log_probabilities() -> None:
    """The first token has none, as with OpenAI: programs that evaluate models by log-probabilities rely on it."""
    [choice] = answer(TEXT, echo(asking(logprobs=True), STARTED))["choices"]
    assert choice["text"] == "The\u2019s sea"
    logprobs = choice["logprobs"]
    tokens = ["The", r"bytes:\xe2\x80", r"bytes:\x99\x73", " sea", r"bytes:\xe2\x80", "token_id:9"]
    assert logprobs["tokens"] == tokens
    assert logprobs["token_logprobs"] == [None, -0.5, 0, -0.25, -0.5, -0.75]
    assert [each if each is None else len(each) for each in logprobs["top_logprobs"]] == [None, 1, 1, 2, 1, 1]


def placed(token: bytes, at: int) -> TokenLogprob:
    return TokenLogprob(logprob=-1, token=token, text_offset=at)


def test_tokens_are_placed_in_the_whole_text_streamed_or_not() -> None:
    """A completion's tokens come after an echoed prompt; part of a character has that character's offset."""
    request = asking(logprobs=True)
    prompt = [placed(b"\xe2\x80", 3), placed(b"\x99s", 3)]
    started = Started(prompt=[b"The", b"\xe2\x80", b"\x99s"], prompt_logprobs=prompt)
    parts = [
        Chunk(text="", logprobs=[placed(b" \xe2\x80", 0)]),
        Chunk(text=" \u2018a", logprobs=[placed(b"\x98a", 1)]),
    ]
    for prompt_echo, before, places in ((echo(request, started), 5, [0, 3, 3]), (Echo(), 0, [])):
        head, end = Head(TEXT, "1", "", 0, ""), GenerateEvent(finished=Finished(reason=Finished.STOP))
        [choice] = whole(head, {0: prompt_echo}, [*(GenerateEvent(chunk=each) for each in parts), end], 1)["choices"]
        assert choice["logprobs"]["text_offset"] == [*places, before, before + 1]
        assert choice["text"][before:].startswith(" \u2018a")
        pieces = [*beginning(head, [0], prompt_echo), *(chunk(head, each, len(prompt_echo.text)) for each in parts)]
        streamed = [place for each in pieces for place in each["choices"][0]["logprobs"]["text_offset"]]
        assert streamed == choice["logprobs"]["text_offset"]


def test_places_that_no_engine_tells_are_not_guessed() -> None:
    assert answer(TEXT, Echo())["choices"][0]["logprobs"]["text_offset"] is None


def test_a_prompt_is_told_without_log_probabilities_where_none_are_wanted() -> None:
    prompt = echo(asking(logprobs=False), STARTED)
    assert prompt == Echo("The\u2019s")
    text = GenerateRequest(text="as it was sent")
    text.sampling.echo = True
    assert echo(text, Started(prompt=[b"<s>", b"as"])).text == "as it was sent"
    text.sampling.echo = False
    assert echo(text, STARTED) == Echo()


def test_a_stream_tells_the_prompt_before_each_of_its_completions() -> None:
    head = Head(TEXT, "1", "demo/pirate", 0, "")
    choices = [each["choices"][0] for each in beginning(head, range(2, 4), Echo("Ahoy", (WORD, HALF)))]
    assert [(choice["index"], choice["text"]) for choice in choices] == [(2, "Ahoy"), (3, "Ahoy")]
    assert choices[0]["logprobs"]["token_logprobs"] == [None, -0.5]
    assert len([*beginning(head, range(2), Echo(logprobs=(NONE,)))]) == 2, "a prompt of what no token has"
    assert not [*beginning(head, range(2), Echo())]


def test_a_stream_tells_a_long_prompt_a_part_at_a_time() -> None:
    """All at once, 15,000 tokens of a prompt with twenty log-probabilities took 600 MB of a gateway, n being 16."""
    head, prompt = Head(TEXT, "1", "demo/pirate", 0, ""), Echo("long", tuple(placed(b"a", at) for at in range(600)))
    pieces = beginning(head, range(2), prompt)
    assert next(pieces)["choices"][0]["text"] == "long"
    choices = [piece["choices"][0] for piece in beginning(head, range(2), prompt)]
    assert [(each["index"], each["text"]) for each in choices[3:]] == [(1, "long"), (1, ""), (1, "")]
    assert max(len(each["logprobs"]["tokens"]) for each in choices) == ECHOED
    end = GenerateEvent(finished=Finished(reason=Finished.STOP))
    [told] = whole(head, {0: prompt}, [end], 1)["choices"]
    for name in told["logprobs"]:
        assert [each for choice in choices[:3] for each in choice["logprobs"][name]] == told["logprobs"][name]
