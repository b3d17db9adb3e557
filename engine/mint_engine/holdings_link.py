"""The part of the engine's link to the placement map that is about what it holds: told in pieces, each once."""

from collections.abc import Callable, Iterator, Mapping

import msgspec
import structlog
from redis.exceptions import ResponseError

from mint_contracts.errors import MapUnavailable
from mint_contracts.functions import RETRY_AFTER_S
from mint_contracts.map_reporter import HELD_PER_CALL, Heard, MapReporter
from mint_contracts.records import EngineRecord, Held

log = structlog.get_logger(__name__)


class Delivered(msgspec.Struct, frozen=True):
    """What came of a report: the map's last answer, of which start, and whether the map had lost this engine."""

    heard: Heard
    incarnation: int
    in_full: bool


class _Piece(msgspec.Struct, frozen=True):
    """As much as one call may carry. It brings what the map has from the sequence `over` to `sequence`."""

    over: int
    sequence: int
    changed: list[Held]
    gone: list[str]
    staged: bool = False  # one of those before the last, of everything told anew
    full: bool = False  # the last of those, with which the map takes all of them for what is held


class HoldingsLink:
    """Used by the engine's agent. `describe(sequence)` gives the engine's record as of now."""

    def __init__(self, reporter: MapReporter, engine: str, describe: Callable[[int], EngineRecord]) -> None:
        self._reporter, self._engine, self._describe = reporter, engine, describe
        self._sequence = 0  # of the newest piece
        self._at = 0  # the sequence that the map is at, by its answers; 0: at nothing of this engine's
        self._held: dict[str, Held] = {}  # what it has at that
        self._whole = False  # that is what it says that the engine holds; False: part of what it is told anew
        self._lost: _Piece | None = None  # whose answer was
        self._heard, self._incarnation = Heard(known=False, version=None, edition=0), 0  # of the last report

    async def bring(self, held: Mapping[str, Held]) -> Delivered:
        """Bring the map to say that the engine holds these, and beat the heart.

        A piece that was answered is not told again. Where the map has lost what it was told, all is told anew, once:
        raises MapUnavailable where it loses that, too, and when it does not answer; the next call goes on from there.
        """
        in_full = not self._whole
        try:
            for _ in range(2):
                if await self._bring(held):
                    return Delivered(self._heard, self._incarnation, in_full)
                if self._whole:
                    log.info("map_forgot_us", engine=self._engine)
                self._begin_again()
                in_full = True
        except (ResponseError, msgspec.MsgspecError) as error:
            if not isinstance(error, ResponseError) or _of_the_piece(error):
                self._begin_again()  # the same piece again would fare no better
            raise
        message = "was lost again while the engine reported what it holds; reporting it again"
        raise MapUnavailable("placement map", message, retry_after_s=RETRY_AFTER_S)

    def _begin_again(self) -> None:
        self._at, self._held, self._whole, self._lost = 0, {}, False, None

    async def _bring(self, held: Mapping[str, Held]) -> bool:
        """False: the map has lost what it was told."""
        if self._lost is not None and not await self._send(self._lost):
            return False
        for piece in self._pieces(held):
            if not await self._send(piece):
                return False
        return True

    async def _send(self, piece: _Piece) -> bool:
        """Whether the map has this now, and what was told before. One that was sent before is taken once."""
        self._lost, record = piece, self._describe(piece.sequence)
        changed, gone, over = piece.changed, piece.gone, piece.over
        if piece.staged:
            taken = await self._reporter.tell(record.incarnation, piece.sequence, changed, gone, over=over)
        else:
            self._heard = await self._reporter.report(record, changed, gone, full=piece.full, over=over)
            self._incarnation, taken = record.incarnation, self._heard.known
        self._lost = None
        if not taken:
            return False
        self._held.update((each.adapter, each) for each in changed)
        for name in gone:
            self._held.pop(name, None)
        self._at, self._whole = piece.sequence, not piece.staged
        return piece.staged or self._heard.held == len(self._held)

    def _pieces(self, held: Mapping[str, Held]) -> Iterator[_Piece]:
        """What takes the map from what it has to this, each from where the one before has brought it; without any
        difference, a heartbeat.
        """
        differing: list[Held | str] = [each for name, each in held.items() if self._held.get(name) != each]
        differing += [name for name in self._held if name not in held]
        for start in range(0, max(1, len(differing)), HELD_PER_CALL):
            end = start + HELD_PER_CALL
            changes, last = differing[start:end], end >= len(differing)
            self._sequence += bool(changes) or not self._whole
            yield _Piece(
                over=self._at,
                sequence=self._sequence,
                changed=[each for each in changes if isinstance(each, Held)],
                gone=[each for each in changes if isinstance(each, str)],
                staged=not self._whole and not last,
                full=not self._whole and last,
            )


def _of_the_piece(error: ResponseError) -> bool:
    """Whether what was told is refused, and not that anything is: Redis says by a word in front that it cannot take
    any now (MISCONF, NOREPLICAS, BUSY and others), which redis-py may make a kind of error of. ERR it leaves out.
    """
    code = str(error).partition(" ")[0]
    return type(error) is ResponseError and (not code.isupper() or code in ("ERR", "WRONGTYPE"))
