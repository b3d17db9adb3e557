"""Prompts far beyond the context are refused at little cost, and long prompts together take bounded resources."""

import asyncio
import random
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mint_contracts.byte_budget import OWN_BYTES
from mint_contracts.errors import Overloaded, PromptTooLong
from mint_contracts.sampling_pb2 import Chat, GenerateRequest, Message, SamplingParams, TokenIds, Whence
from mint_contracts.transport import MOST_TOKEN_BYTES
from mint_engine import server
from mint_engine.requests import length, reading
from mint_engine.requests.prompts import read_prompt
from mint_engine.requests.reading import LONG_AT_ONCE, Reading
from tests.engine.running import CONTEXT, ask, running
from tests.engine.steps import refusal
from tests.waiting import until

RULE = "=" * 100  # one token, of the longest length
LONG, SHORT = OWN_BYTES + 1, OWN_BYTES


class Counting:
    """A tokenizer that counts the characters it was given."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._encode, self.given = tokenizer.encode, 0
        tokenizer.encode = self

    def __call__(self, text: str, **options: Any) -> list[int]:
        self.given += len(text)
        tokens: list[int] = self._encode(text, **options)
        return tokens


@pytest.fixture
def tokenizer(base: Path) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base)
    found.add_tokens([RULE])
    found.chat_template = "{% for m in messages %}{{ m.content.split('</think>') | last }}{% endfor %}"
    return found


def asking(kind: str, text: str) -> GenerateRequest:
    chat = Chat(messages=[Message(role="user", content=text)])
    return GenerateRequest(text=text) if kind == "text" else GenerateRequest(chat=chat)


def read(kind: str, text: str, tokenizer: PreTrainedTokenizerBase, context: int = CONTEXT) -> list[int]:
    return list(read_prompt(asking(kind, text), tokenizer, len(tokenizer), context))


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_a_prompt_that_is_far_too_long_is_refused_after_its_beginning(
    kind: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    text = "".join(random.Random(1).choices("0123456789", k=100 * CONTEXT))
    counting = Counting(tokenizer)
    with pytest.raises(PromptTooLong, match=f"at least .* tokens in the first .* of its {len(text)} characters"):
        read(kind, text, tokenizer)
    assert 0 < counting.given < len(text) / 10


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_a_beginning_that_fits_hides_nothing(kind: str, tokenizer: PreTrainedTokenizerBase) -> None:
    counting = Counting(tokenizer)
    text = RULE * (CONTEXT // 2) + "".join(random.Random(1).choices("0123456789", k=70 * CONTEXT))
    with pytest.raises(PromptTooLong, match="at least"):
        read(kind, text, tokenizer)
    assert 50 * CONTEXT < counting.given < len(text) * 3 / 4


@pytest.mark.parametrize("kind", ["text", "chat"])
@pytest.mark.parametrize("before", range(0, 100, 7))
def test_prompts_that_fit_are_read_wherever_they_are_cut(
    kind: str, before: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    text = "1" * before + RULE * (CONTEXT - 1 - before)
    assert length.is_doubtful(len(text), CONTEXT)
    rule = tokenizer.convert_tokens_to_ids(RULE)
    assert read(kind, text, tokenizer)[before:] == [rule] * (CONTEXT - 1 - before)
    with pytest.raises(PromptTooLong, match=f"has {CONTEXT} tokens"):
        read(kind, text + RULE, tokenizer)


def test_the_length_of_a_chat_is_that_of_the_rendered_template(tokenizer: PreTrainedTokenizerBase) -> None:
    thoughts = "0123456789" * (10 * CONTEXT)
    assert read("chat", f"{thoughts}</think>dog", tokenizer) == read("text", "dog", tokenizer)


def test_a_long_context_is_counted_in_pieces_of_no_more_memory(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(length, "_PIECE", 2000)
    counting, digits = Counting(tokenizer), "0123456789" * 1000
    with pytest.raises(PromptTooLong, match="at least"):
        read("text", digits, tokenizer, context=3000)
    assert counting.given <= 6000


class Works:
    """Readings that last until the test lets them go on."""

    def __init__(self) -> None:
        self.running, self.let = 0, threading.Event()
        self._lock = threading.Lock()

    def __call__(self) -> int:
        with self._lock:
            self.running += 1
        assert self.let.wait(60)
        return self.running


def test_a_prompt_takes_eight_bytes_a_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Hundreds of them may run and wait."""
    vocabulary, count = 50_000, 100_000
    asked = GenerateRequest(tokens=TokenIds(ids=[at * 7919 % vocabulary for at in range(count)]))
    read_prompt(asked, tokenizer, vocabulary, count + 1)
    tracemalloc.start()
    try:
        prompt = read_prompt(asked, tokenizer, vocabulary, count + 1)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert prompt == tuple(asked.tokens.ids)
    assert taken < 9 * count


async def test_long_prompts_are_read_few_at_a_time_and_short_ones_wait_for_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", 8)
    prompts, works = Reading("engine"), Works()
    begun = [asyncio.create_task(prompts.run(LONG, "", works)) for _ in range(8)]
    await until(lambda: works.running == LONG_AT_ONCE)
    assert await prompts.run(SHORT, "", lambda: "short") == "short"
    with pytest.raises(Overloaded) as caught:
        await prompts.run(LONG, "", works)
    assert caught.value.retry_after_s
    assert works.running == LONG_AT_ONCE
    works.let.set()
    await asyncio.gather(*begun)
    assert await prompts.run(LONG, "", lambda: "long") == "long", "there is room again"


async def test_one_clients_long_prompts_leave_room_for_anothers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", 8 * OWN_BYTES)
    prompts, works = Reading("engine"), Works()
    begun = [asyncio.create_task(prompts.run(2 * OWN_BYTES, "hot", works)) for _ in range(4)]
    await until(lambda: works.running == LONG_AT_ONCE)
    with pytest.raises(Overloaded, match="with your key"):
        await prompts.run(2 * OWN_BYTES, "hot", works)
    begun.append(asyncio.create_task(prompts.run(2 * OWN_BYTES, "cold", works)))
    works.let.set()
    await asyncio.gather(*begun)
    assert await prompts.run(100 * OWN_BYTES, "hot", lambda: "long") == "long", "longer than its share, by itself"


async def test_short_prompts_do_not_wait_for_what_others_have_asyncios_threads_do() -> None:
    """Such as reading the calls of many policies' trainers."""
    prompts, works = Reading("engine"), Works()
    others = [asyncio.create_task(asyncio.to_thread(works)) for _ in range(40)]  # asyncio has 32 threads at most
    await until(lambda: works.running)
    async with asyncio.timeout(60):
        assert await prompts.run(SHORT, "", lambda: "short") == "short"
    works.let.set()
    await asyncio.gather(*others)


async def test_a_prompt_longer_than_the_queue_is_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", 2 * OWN_BYTES)
    prompts, works = Reading("engine"), Works()
    huge = asyncio.create_task(prompts.run(100 * OWN_BYTES, "", works))
    await until(lambda: works.running)
    with pytest.raises(Overloaded):
        await prompts.run(100 * OWN_BYTES, "", works)
    works.let.set()
    await huge


async def test_a_client_is_told_to_come_back_where_long_prompts_wait(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", OWN_BYTES)
    works = Works()

    def read_late(*given: Any) -> tuple[int, ...]:
        if len(given[0].text) > SHORT:
            works()
        return read_prompt(*given)

    monkeypatch.setattr(server, "read_prompt", read_late)
    many = GenerateRequest(text="dog " * (OWN_BYTES // 2), sampling=SamplingParams(max_tokens=1))
    async with running(base) as engine:
        first = asyncio.create_task(refusal(engine, many))
        await until(lambda: works.running)
        assert isinstance(await refusal(engine, many), Overloaded)
        assert (await ask(engine, "dog", max_tokens=1)).tokens
        works.let.set()
        assert isinstance(await first, PromptTooLong)


async def test_an_engine_accepts_whatever_a_gateway_does(base: Path) -> None:
    async with running(base) as engine:
        longest = GenerateRequest(text="a" * MOST_TOKEN_BYTES, whence=Whence(uri=f"s3://{'a' * 2000}"))
        assert isinstance(await refusal(engine, longest), PromptTooLong)
