"""Greedy decoding by transformers and peft alone: `python -m e2e.samples.answering REQUEST` prints one answer a line.

`reference` runs it and caches. Float32, one prompt at a time: no padding and no batch that could change a sum.
"""

import sys
from dataclasses import dataclass
from typing import Any

import msgspec


@dataclass(frozen=True)
class Request:
    """User turns to answer by the base in directory `base` with the adapter in `adapter_path`, if any."""

    base: str
    adapter: str
    adapter_path: str | None
    questions: tuple[str, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class Answer:
    """One greedy answer; `gaps` has one logit gap a token, and `token_ids` ends with end-of-turn when `finished`."""

    adapter: str
    question: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    gaps: tuple[float, ...]
    finished: bool
    text: str

    @property
    def min_gap(self) -> float:
        """The closest that the second-best token came at any step, in logits."""
        return min(self.gaps)

    @property
    def content_ids(self) -> tuple[int, ...]:
        """The generated tokens without the end-of-turn token."""
        return self.token_ids[:-1] if self.finished else self.token_ids


def _load(request: Request) -> tuple[Any, Any]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(request.base, dtype=torch.float32)
    if request.adapter_path is not None:
        model = PeftModel.from_pretrained(model, request.adapter_path)
    return model.eval(), AutoTokenizer.from_pretrained(request.base)


def _greedy(model: Any, tokenizer: Any, request: Request, question: str) -> Answer:
    import torch

    from e2e.samples.training import chat

    prompt = chat(tokenizer, question)
    with torch.inference_mode():
        out = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=request.max_new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    tokens = out.sequences[0, len(prompt) :].tolist()
    best = [logits[0].float().topk(2).values.tolist() for logits in out.logits]  # of each step
    return Answer(
        adapter=request.adapter,
        question=question,
        prompt_ids=tuple(prompt),
        token_ids=tuple(tokens),
        gaps=tuple(first - second for first, second in best),
        finished=tokens[-1] == tokenizer.eos_token_id,
        text=tokenizer.decode(tokens, skip_special_tokens=True),
    )


def main() -> None:
    """Answer the request given as JSON in the first argument."""
    request = msgspec.json.decode(sys.argv[1], type=Request)
    model, tokenizer = _load(request)
    for question in request.questions:
        print(msgspec.json.encode(_greedy(model, tokenizer, request, question)).decode())


if __name__ == "__main__":
    main()
