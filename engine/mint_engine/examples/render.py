"""Rendering an example for the base: the token ids of its prompt, and for supervised learning of its answer."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from transformers import PreTrainedTokenizerBase

from mint_contracts import sampling_pb2
from mint_contracts.errors import BadExample, InvalidRequest, PromptTooLong
from mint_contracts.sampling_pb2 import Started
from mint_engine.examples.ending import Ends, begins_thought, introduced
from mint_engine.examples.example import Example
from mint_engine.requests.channels import Channels, read_channels
from mint_engine.requests.prompts import read_prompt
from mint_engine.requests.thoughts import END
from mint_engine.requests.variables import PLACE


@dataclass(frozen=True)
class Renderer:
    """A base's tokenizer with its limits."""

    tokenizer: PreTrainedTokenizerBase
    vocab_size: int
    context_length: int
    ends: Ends
    channels: Channels | None = None

    def prompt(self, example: Example, room: int) -> tuple[int, ...]:
        """Return the prompt's tokens, leaving `room` for new ones. Raises BadExample."""
        request = sampling_pb2.GenerateRequest()
        if isinstance(example.prompt, str):
            request.text = example.prompt
        else:
            request.chat.messages.extend(
                sampling_pb2.Message(role=each.role, content=each.content) for each in example.prompt
            )
            if example.variables:
                request.chat.template_variables = msgspec.json.encode(example.variables).decode()
        subject = f"example {example.text[:80]!r}"
        try:
            tokens = read_prompt(request, self.tokenizer, self.vocab_size, self.context_length)
        except PromptTooLong as error:
            limit = f"sampling.maxTokens sets aside {room} of these for new tokens"
            raise BadExample(subject, f"can't be asked: {error}; {limit}") from None
        except InvalidRequest as error:
            if error.subject == PLACE:
                raise BadExample("dataset.templateVariables", error.message) from None
            raise BadExample(subject, f"can't be asked: {error}") from None
        if len(tokens) > (left := max(0, self.context_length - room)):
            raise BadExample(
                subject,
                f"can't be asked: prompt: has {len(tokens)} tokens; of the context's {self.context_length}, "
                f"sampling.maxTokens sets aside {room} for new tokens, which leaves {left}. Lower "
                "sampling.maxTokens, shorten the prompt, or raise spec.engine.contextLength",
            )
        return tokens

    def thought(self, example: Example, prompt: Sequence[int]) -> "Started.Thought.ValueType":
        """Return CHANNELS if completions of an example's prompt are messages, whose markers their text then has."""
        chat = sampling_pb2.Chat(channels=not isinstance(example.prompt, str))
        return read_channels(chat, prompt, self.channels, self.tokenizer)

    def answer(self, example: Example, room: int) -> tuple[int, ...]:
        """Return the tokens of the answer, with what a chat's template puts before it, and its end.

        They are at most `room` (a wave's maxTokens). Raises BadExample.
        """
        subject = f"example {example.text[:80]!r}"
        if not example.answer:
            raise BadExample(
                subject,
                "has no answer to learn; set dataset.answerField to the field that has it, or dataset.promptField to "
                "that of a chat that ends with the assistant's message",
            )
        answer, end, around = example.answer, self.ends.text, "the one that ends it"
        if not isinstance(example.prompt, str):
            variables = msgspec.json.encode(example.variables).decode()
            answer, end = introduced(self.tokenizer, answer, variables), self.ends.chat
            around = "what the chat template puts around it"
            if END not in answer and begins_thought(self.tokenizer, example.prompt, example.variables):
                raise BadExample(
                    subject,
                    "has an answer without a thought, but this base's chat template begins one before each answer, "
                    f"so that it would be learnt as a thought; begin answers with a thought and {END}, or turn "
                    "thinking off by dataset.templateVariables if the template has a variable for it",
                )
        tokens: Sequence[int] = self.tokenizer.encode(answer, add_special_tokens=False)
        ended = [*tokens, *end]
        if len(ended) > room:
            raise BadExample(
                subject,
                f"has an answer of {len(ended)} tokens with {around}; sampling.maxTokens, which bounds answers, too, "
                f"is {room}",
            )
        return tuple(ended)
