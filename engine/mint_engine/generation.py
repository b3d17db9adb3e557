"""One step of the engine: schedule, compute, choose, and say what came of it. No threads here."""

from collections.abc import Callable

import structlog
import torch

from mint_contracts.errors import Internal, MintError
from mint_engine import metrics
from mint_engine.attention import Span
from mint_engine.forward import Forward
from mint_engine.pages import Pages
from mint_engine.request import Done, Event, Failed, PromptScored, Request, Scored, Sequence, Sink, Tokens
from mint_engine.sampling import choose_tokens, score_tokens
from mint_engine.scheduler import Limits, Scheduler, Share
from mint_engine.text import TextStream

Outcome = tuple[Sink, Event]

_log = structlog.get_logger(__name__)


class Generation:
    """Requests in, events out, a step at a time. Owned by the step thread."""

    def __init__(self, forward: Forward, limits: Limits) -> None:
        self._forward = forward
        self._eos = forward.base.eos
        self._decode: Callable[[list[int]], str] = lambda ids: str(
            forward.base.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )
        self.scheduler = Scheduler(limits, Pages(forward.cache.pages))

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    def begin(self, request: Request, sink: Sink) -> Sequence:
        """A sequence for `request`, to be queued with `scheduler.add`."""
        return Sequence(request, sink, TextStream(self._decode, request.prompt, request.sampling.stop))

    def step(self) -> list[Outcome]:
        """Compute one step and return the events to post. A defect fails the requests of this step alone."""
        for sequence in self.scheduler.admit():
            self._forward.cache.wipe(sequence.pages)
        # Rows of one adapter lie together, so that its weights are read once.
        shares = sorted(self.scheduler.next_step(), key=lambda share: share.sequence.request.slot)
        if not shares:
            return []
        try:
            logits, ends = self._compute(shares)
            outcomes, rows = self._advance(shares, logits, ends)
            return outcomes + self._choose(rows, logits)
        except Exception as error:  # noqa: BLE001 - the step loop must outlive any defect in a step
            metrics.STEP_FAILURES.inc()
            _log.exception("step_failed", requests=len(shares))
            return self.fail([share.sequence for share in shares], Internal("engine", f"a step failed: {error}"))

    def fail(self, sequences: list[Sequence], error: MintError) -> list[Outcome]:
        """End requests with an error."""
        live = [each for each in sequences if each in self.scheduler.running or each in self.scheduler.waiting]
        for sequence in live:
            self.scheduler.remove(sequence)
        return [(sequence.sink, Failed(error)) for sequence in live]

    def _compute(self, shares: list[Share]) -> tuple[torch.Tensor, list[int]]:
        """Logits of all rows that are needed, and where each share's end among them."""
        tokens: list[int] = []
        spans: list[Span] = []
        keep: list[int] = []
        ends: list[int] = []
        for share in shares:
            sequence, row = share.sequence, len(tokens)
            span = Span(row, share.length, sequence.computed, sequence.pages, sequence.request.slot)
            tokens += sequence.tokens[sequence.computed : sequence.computed + share.length]
            spans.append(span)
            if _scores_prompt(share):
                keep += range(row, row + share.length)
            elif share.samples:
                keep.append(row + share.length - 1)
            ends.append(len(keep))
        return self._forward.run(tokens, spans, keep), ends

    def _advance(
        self, shares: list[Share], logits: torch.Tensor, ends: list[int]
    ) -> tuple[list[Outcome], list[tuple[Sequence, int]]]:
        """Note what is computed; returns finished prompts' scores, and (sequence, row) of each token to choose."""
        outcomes: list[Outcome] = []
        rows: list[tuple[Sequence, int]] = []
        start = 0
        for share, end in zip(shares, ends, strict=True):
            sequence = share.sequence
            if _scores_prompt(share):
                prompt = sequence.request.prompt
                following = prompt[sequence.computed + 1 : sequence.computed + 1 + share.length]
                top = sequence.request.sampling.logprobs or 0
                sequence.prompt_scores += score_tokens(logits[start : start + len(following)], following, top)
                if share.samples:
                    outcomes.append((sequence.sink, PromptScored(tuple(sequence.prompt_scores))))
            if share.samples:
                rows.append((sequence, end - 1))
            sequence.computed += share.length
            start = end
        return outcomes, rows

    def _choose(self, rows: list[tuple[Sequence, int]], logits: torch.Tensor) -> list[Outcome]:
        """Choose a token for each row, and end the requests that reached theirs."""
        if not rows:
            return []
        picked = logits[[row for _, row in rows]]
        # A peak that is NaN or infinite: these weights overflowed. It is this request's own trouble, nobody else's.
        sound = torch.isfinite(picked.amax(dim=-1)).tolist()
        tokens = choose_tokens(picked, [(each.request.sampling, each.completion_tokens) for each, _ in rows])
        outcomes: list[Outcome] = []
        for at, (sequence, _) in enumerate(rows):
            if not sound[at]:
                subject = f"adapter {sequence.request.adapter}" if sequence.request.adapter else "base model"
                outcomes += self.fail([sequence], Internal(subject, "computes NaN or infinity for this prompt"))
                continue
            top = sequence.request.sampling.logprobs
            scores = [] if top is None else score_tokens(picked[at : at + 1], [tokens[at]], top)
            outcomes += self._emit(sequence, tokens[at], scores)
        return outcomes

    def _emit(self, sequence: Sequence, token: int, scores: list[Scored]) -> list[Outcome]:
        sampling = sequence.request.sampling
        sequence.tokens.append(token)
        text, stopped = sequence.text.push(token)
        stopped = stopped or (token in self._eos and not sampling.ignore_eos)
        ended = stopped or sequence.completion_tokens >= sampling.max_tokens
        if ended:
            text += sequence.text.finish()
        outcomes: list[Outcome] = [(sequence.sink, Tokens((token,), text, tuple(scores)))]
        if ended:
            self.scheduler.remove(sequence)
            outcomes.append((sequence.sink, Done(stopped, sequence.completion_tokens)))
        return outcomes


def _scores_prompt(share: Share) -> bool:
    """Whether this share covers tokens of a prompt whose log-probabilities were asked for."""
    sequence = share.sequence
    return sequence.request.sampling.prompt_logprobs and sequence.computed < len(sequence.request.prompt)
