"""One step of the engine: schedule, compute, choose tokens, and return the events. No threads here."""

import math
from collections.abc import Callable
from typing import NamedTuple

import structlog
import torch

from mint_contracts.errors import EngineUnavailable, Internal, InvalidRequest, MintError
from mint_contracts.sampling_pb2 import Started
from mint_engine import metrics
from mint_engine.model.device import settle, take
from mint_engine.model.forward import Forward
from mint_engine.model.greedy import greedy_tokens
from mint_engine.model.routes import Routes
from mint_engine.model.span import Span
from mint_engine.requests.events import Done, Event, Failed, PromptScored, Scored, Sink, Tokens
from mint_engine.requests.masks import Late, mask
from mint_engine.requests.parameters import Sampling
from mint_engine.requests.penalties import penalise
from mint_engine.requests.pieces import choose_decoder
from mint_engine.requests.sampling import choose_tokens, score_tokens
from mint_engine.requests.text import TextStream
from mint_engine.requests.thoughts import after, ahead
from mint_engine.requests.token_counts import TokenCounts
from mint_engine.residency.arrival import NotArrived
from mint_engine.residency.copies import fresh_error
from mint_engine.scheduling.budget import Share
from mint_engine.scheduling.masking import cost, in_turn
from mint_engine.scheduling.pages import Pages
from mint_engine.scheduling.prefix import extend_keys
from mint_engine.scheduling.request import Completion, Request, State
from mint_engine.scheduling.scheduler import Limits, Scheduler

Outcome = tuple[Completion, Event]  # an event and the completion to post it to
Row = tuple[Completion, int]  # a completion and the row of the logits from which its next token is chosen

_GREEDY = Sampling(max_tokens=1, seed=0)

_log = structlog.get_logger(__name__)


class _Said(NamedTuple):
    """What a token adds to its completion."""

    text: str  # that became final with it
    marks: bool  # it is a channels' marker
    stopped: bool  # it ends the completion by itself
    ended: bool  # it ends it, perhaps because it was the last that was wanted


class Generation:
    """Turns requests into events, one step at a time. Owned by the step thread."""

    def __init__(self, forward: Forward, limits: Limits, on_lost: Callable[[], None]) -> None:
        """`on_lost` is called when the engine can compute nothing any more."""
        self._forward, self._on_lost = forward, on_lost
        self._eos = forward.base.eos
        self._decoder = choose_decoder(forward.base.tokenizer)
        self._markers, self._channels = forward.base.markers, forward.base.channels or ()
        self._showing_decoder = choose_decoder(forward.base.tokenizer, shows_special=True)
        self.scheduler = Scheduler(limits, Pages(forward.cache.pages), windows=forward.cache.groups.windows)

    @property
    def compute(self) -> str:
        """What computes the steps (see `Forward.compute`)."""
        return self._forward.compute

    @property
    def follows_arrivals(self) -> bool:
        """Whether a request may begin while its adapter is still arriving in its slot."""
        return self._forward.follows_arrivals

    @property
    def cache_bytes(self) -> int:
        """Bytes of the KV cache on this rank."""
        return self._forward.cache.bytes

    def close(self) -> None:
        """Close the forward pass, ending its other processes; no step may follow."""
        self._forward.close()

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return self.scheduler.busy

    def begin(self, request: Request, sink: Sink, leader: Completion | None) -> Completion:
        """Return the completion of `request`, to be queued with `scheduler.add`; any thread may call this.

        `leader` is the first sibling with the same prompt, if any. Reading the tokens that it has begun with takes
        time. Raises InvalidRequest if it can never fit.
        """
        groups, total = self._forward.cache.groups, self.scheduler.pages.total
        pages = groups.pages(request.most_tokens, self.scheduler.limits.step_tokens)
        if pages > total:
            raise InvalidRequest("prompt", f"can grow to {pages} pages of the KV cache, which has {total}")
        decoder = self._showing_decoder if request.channels else self._decoder
        text = TextStream(decoder(request.prompt), request.sampling.stop)
        before = ahead(Started.Thought.ValueType(request.thought), self._markers)
        if before is None and not request.channels:
            text.seek(request.sampling.answer_stop)
        grammar = request.grammar.copy() if request.grammar is not None else None
        completion = Completion(request, sink, text, leader, grammar, before)
        if request.reuses:
            completion.keys += leader.keys if leader is not None else ()  # saves 25 ms per sibling for 131,072 tokens
            extend_keys(completion.keys, request.revision, request.prompt, request.salt)
        for token in request.begun:
            if completion.ended is not None:
                raise InvalidRequest("begun", "has tokens after the end of a completion")
            said = self._take(completion, token)
            if said.ended:
                completion.ended = Done(said.stopped, completion.generated)
        if request.begun and _changes_logits(completion):
            _counts_of(completion)  # in a step it would have all others wait: 0.1 s for 20,000 tokens
        return completion

    def step(self) -> list[Outcome]:
        """Compute one step and return the events to post. A defect fails only the requests of this step.

        If the engine cannot compute after the defect either, it is lost, and requests fail with EngineUnavailable.
        """
        lost = self._fail_lost()
        # Rows of one adapter are adjacent, so that its weights are read once.
        shares = sorted(self.scheduler.next_step(), key=lambda share: share.completion.request.slot)
        return lost + self._step(shares) if shares else lost

    def _step(self, shares: list[Share]) -> list[Outcome]:
        completions = [share.completion for share in shares]
        outcomes: list[Outcome] = []  # kept on a defect, as requests may have ended before it in the same step
        try:
            self._wipe()
            metrics.STEP_ADAPTERS.observe(len({share.completion.request.slot for share in shares}))
            logits, ends = self._compute(shares)
            self._choose(self._advance(shares, logits, ends, outcomes), logits, outcomes)
            return outcomes
        except NotArrived:  # the next step sees which adapters have arrived, or failed
            return []
        except EngineUnavailable as error:  # a rank has ended, and so will the engine
            return self.fail(completions, error)
        except Exception as error:  # noqa: BLE001 - the step loop must outlive any defect in a step
            why = self._tell_defect(completions, error)
        # Outside the handler, which keeps the step's tensors alive: a full device must not pass for a broken one.
        if self.check():
            return outcomes + self.fail(completions, Internal("engine", why))
        return outcomes + self.fail(completions, EngineUnavailable("engine", f"cannot compute any more: {why}"))

    def _fail_lost(self) -> list[Outcome]:
        """Fail the requests whose adapters did not arrive."""
        outcomes: list[Outcome] = []
        for completion in list(self.scheduler.running):
            arrival = completion.request.arrival
            if arrival is not None and arrival.error is not None:
                outcomes += self.fail([completion], fresh_error(arrival.error, arrival.error.retry_after_s))
        return outcomes

    def check(self) -> bool:
        """Return whether the engine can still compute; if not, it is lost."""
        if self._forward.computes():
            return True
        self.lose()
        return False

    def lose(self) -> None:
        """Report that the engine can compute nothing any more."""
        self._on_lost()

    def fail(self, completions: list[Completion], error: MintError) -> list[Outcome]:
        """Fail those of the requests that have not ended."""
        live = [each for each in completions if each.state is not State.ENDED]
        for completion in live:
            self.scheduler.remove(completion)
        return [(completion, Failed(error)) for completion in live]

    def _tell_defect(self, completions: list[Completion], error: Exception) -> str:
        metrics.STEP_FAILURES.inc()
        _log.exception("step_failed", requests=len(completions), exc_info=error)
        return f"a step failed: {error}"

    def _wipe(self) -> None:
        if self.scheduler.unwiped:
            self._forward.wipe(self.scheduler.unwiped)
            self.scheduler.unwiped.clear()

    def _compute(self, shares: list[Share]) -> tuple[torch.Tensor, list[int]]:
        """Return the logits of all rows that are needed, and the index at which each share's rows end."""
        tokens: list[int] = []
        spans: list[Span] = []
        keep: list[int] = []
        ends: list[int] = []
        for share in shares:
            completion, length, row = share.completion, share.length, len(tokens)
            start = completion.computed
            first, *others = completion.tables
            spans.append(Span(row, length, start, first, completion.request.slot, others))
            tokens += completion.tokens[start : start + length]
            if completion.must_score:
                keep += range(row, row + length)
            elif share.samples:
                keep.append(row + length - 1)
            ends.append(len(keep))
        request = shares[0].completion.request  # if its adapter is still arriving, all shares have its slot
        logits = self._forward.run(tokens, spans, keep, request.arrival if request.awaits else None)
        if not keep:  # and so nothing is read, for which the host would wait
            settle(self._forward.base.device)
        return logits, ends

    def _advance(
        self, shares: list[Share], logits: torch.Tensor, ends: list[int], outcomes: list[Outcome]
    ) -> list[Row]:
        """Record what was computed, and finished prompts' scores; return the rows to choose tokens from."""
        rows: list[Row] = []
        start = 0
        for share, end in zip(shares, ends, strict=True):
            completion, own, start = share.completion, logits[start:end], end
            if completion.must_score:
                outcomes += self._score_prompt(share, own)
            if completion.state is State.ENDED:  # its pages may be another's by the next step
                continue
            samples = share.samples  # before `computed` changes it
            chooses = samples and completion.request.sampling.max_tokens > 0
            deferred = chooses and completion.grammar is not None  # its last token counts once its next is chosen
            self.scheduler.computed(completion, share.length - deferred)
            if chooses:
                rows.append((completion, end - 1))
            elif samples:
                outcomes += self._end_of_prompt(completion, own[-1:])
        return rows

    def _score_prompt(self, share: Share, logits: torch.Tensor) -> list[Outcome]:
        """Score the prompt's tokens that follow this share's rows [n, V]; post the scores when they are complete.

        A score that is not finite ends the request, and no score of its prompt is posted.
        """
        completion = share.completion
        prompt, start = completion.request.prompt, completion.computed
        following = prompt[start + 1 : start + 1 + share.length]
        scores = score_tokens(logits[: len(following)], following, completion.request.sampling.logprobs or 0)
        if not all(math.isfinite(score.logprob) for score in scores):
            return self.fail([completion], _unsound(completion))
        completion.prompt_scores += scores
        if start + share.length < len(prompt):
            return []
        completion.prompt_scored = True
        return [(completion, PromptScored(tuple(completion.prompt_scores)))]

    def _choose(self, rows: list[Row], logits: torch.Tensor, outcomes: list[Outcome]) -> None:
        """Choose a token for each row, and end the requests that are finished."""
        if not rows:
            return
        if len(rows) < logits.shape[0]:
            logits = take(logits, [row for _, row in rows])
        tokens = self._chosen([completion for completion, _ in rows], logits)
        scores = _score_chosen(rows, tokens, logits)
        for at, (completion, _) in enumerate(rows):
            token = tokens[at]
            if isinstance(token, Late):
                completion.late += 1
            elif isinstance(token, MintError):  # only this request is affected
                outcomes += self.fail([completion], token)
            else:
                try:
                    self._emit(completion, token, scores.get(at, ()), outcomes)
                except InvalidRequest as error:  # its grammar is too expensive
                    outcomes += self.fail([completion], error)
                except Exception as error:  # noqa: BLE001 - the step's other requests go on
                    outcomes += self.fail([completion], Internal("engine", self._tell_defect([completion], error)))

    def _chosen(self, completions: list[Completion], logits: torch.Tensor) -> list[int | MintError | Late]:
        """Return a token for each row of logits [n, V], which stay unchanged; or the request's error, or Late."""
        wanted = [(each.request.sampling, each.generated) for each in completions]
        changes = [_changes_logits(each) for each in completions]
        # Of rows whose logits will change, only soundness counts yet: to draw from them would take far longer.
        first = [(_GREEDY, 0) if change else each for change, each in zip(changes, wanted, strict=True)]
        tokens, troubles = choose_tokens(logits, first), dict[int, MintError | Late]()
        changed = [at for at, change in enumerate(changes) if change and tokens[at] is not None]
        if changed:  # choose theirs again, from a copy of only their logits
            own = penalise(take(logits, changed), [(wanted[at][0], _counts_of(completions[at])) for at in changed])
            masked = self._mask([completions[at] for at in changed], own)
            troubles = {changed[at]: trouble for at, trouble in masked.items()}
            rechosen = choose_tokens(own, [wanted[at] for at in changed])
            for at, token in zip(changed, rechosen, strict=True):
                tokens[at] = token
        found = [_unsound(each) if token is None else token for each, token in zip(completions, tokens, strict=True)]
        return [troubles.get(at, token) for at, token in enumerate(found)]

    def _mask(self, completions: list[Completion], logits: torch.Tensor) -> dict[int, MintError | Late]:
        """Mask each row of logits [n, V] by its request's grammar, in place; return by row why some could not be."""
        fairness = self.scheduler.fairness
        found = mask([each.grammar for each in completions], logits, in_turn(completions, fairness.rank))
        for at, each in enumerate(completions):
            if each.grammar is not None and not isinstance(found.get(at), Late):
                fairness.charge(each.request.party, cost(each.grammar.paid_s))
        return {
            at: error
            if isinstance(error, InvalidRequest | Late)  # too expensive, or late
            else Internal("engine", self._tell_defect([completions[at]], error))
            for at, error in found.items()
        }

    def _emit(self, completion: Completion, token: int, scores: tuple[Scored, ...], outcomes: list[Outcome]) -> None:
        if completion.grammar is not None:
            completion.late = 0
            self.scheduler.computed(completion, 1)
        said = self._take(completion, token)
        self.scheduler.generated(completion)
        begins = completion.text.begins
        outcomes.append((completion, Tokens((token,), said.text, scores, begins, (begins,) if said.marks else ())))
        if said.ended:
            outcomes.append(self._end(completion, stopped=said.stopped))

    def _take(self, completion: Completion, token: int) -> _Said:
        """Add a token to a completion, its text and its grammar."""
        sampling = completion.request.sampling
        completion.tokens.append(token)
        text, stopped = "", token in self._eos and not sampling.ignore_eos
        marks = completion.request.channels and token in self._channels and not stopped
        before, completion.ahead = completion.ahead, after(token, completion.ahead)
        thinks = before is not None and before.begun  # the token is the thought's, also if it ends that
        answers = before is not None and completion.ahead is None  # from this token on, or from the next
        if answers and not thinks:
            completion.text.seek(sampling.answer_stop)
        if stopped:
            completion.text.skip()
        elif marks:
            text = completion.text.mark(token)
        else:
            text, stopped = completion.text.push(token)
        if answers and thinks:
            completion.text.seek(sampling.answer_stop)
        if completion.grammar is not None and not stopped:
            stopped = completion.grammar.take(token)
        ended = stopped or completion.generated >= sampling.max_tokens
        if ended:
            text += completion.text.finish()
        return _Said(text, marks, stopped, ended)

    def _end_of_prompt(self, completion: Completion, logits: torch.Tensor) -> list[Outcome]:
        """End a request that wants no tokens; its first would have been chosen from these logits [1, V]."""
        _, [sound] = greedy_tokens(logits)
        return [self._end(completion, stopped=False)] if sound else self.fail([completion], _unsound(completion))

    def _end(self, completion: Completion, *, stopped: bool) -> Outcome:
        routes = self._routes(completion)
        self.scheduler.remove(completion)
        first = completion.leader or completion  # siblings would count what the leader has just computed
        return completion, Done(stopped, completion.generated, first.found_first, routes)

    def _routes(self, completion: Completion) -> Routes | None:
        routes = self._forward.routes if completion.request.routes else None
        return routes.read(completion.tables[0], completion.computed) if routes is not None else None


def _changes_logits(completion: Completion) -> bool:
    return completion.request.sampling.penalises or completion.grammar is not None


def _counts_of(completion: Completion) -> TokenCounts:
    completion.token_counts = completion.token_counts or TokenCounts()
    return completion.token_counts.take(completion.tokens, len(completion.request.prompt))


def _unsound(completion: Completion) -> Internal:
    subject = f"adapter {completion.request.adapter}" if completion.request.adapter else "base model"
    return Internal(subject, "computes NaN or infinity for this prompt")


def _score_chosen(
    rows: list[Row], tokens: list[int | MintError | Late], logits: torch.Tensor
) -> dict[int, tuple[Scored, ...]]:
    """Return the scores of the chosen tokens, by index in `rows`, for the requests that ask for them."""
    asking: dict[float, dict[int, tuple[int, int]]] = {}  # by temperature: {index: (token, number of alternatives)}
    for at, ((each, _), token) in enumerate(zip(rows, tokens, strict=True)):
        sampling = each.request.sampling
        if isinstance(token, int) and sampling.logprobs is not None:
            asking.setdefault(sampling.scored_at, {})[at] = (token, sampling.logprobs)
    return {
        at: scores
        for temperature, asked in asking.items()
        for at, scores in _score_at(temperature, asked, logits).items()
    }


def _score_at(
    temperature: float, asked: dict[int, tuple[int, int]], logits: torch.Tensor
) -> dict[int, tuple[Scored, ...]]:
    """Return scores by row of logits [n, V]; `asked` gives for each row the token and how many alternatives."""
    chosen = logits if len(asked) == logits.shape[0] else take(logits, list(asked))
    if temperature != 1.0:
        chosen = chosen.float() / temperature
    found = score_tokens(chosen, [token for token, _ in asked.values()], max(top for _, top in asked.values()))
    return {
        at: (Scored(score.token_id, score.logprob, score.top[:top]),)
        for (at, (_, top)), score in zip(asked.items(), found, strict=True)
    }
