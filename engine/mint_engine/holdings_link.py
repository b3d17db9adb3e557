"""The part of the engine's link to the placement map that reports its holdings, in pieces, each taken once."""

from collections.abc import Callable, Iterator, Mapping

import msgspec
import structlog
from redis.exceptions import ResponseError

from mint_contracts.errors import MapUnavailable
from mint_contracts.functions import RETRY_AFTER_S
from mint_contracts.map_reporter import HELD_PER_CALL, MapReporter, ReportReply
from mint_contracts.records import EngineRecord, Held

log = structlog.get_logger(__name__)


class Delivered(msgspec.Struct, frozen=True):
    """The result of a report: the map's last answer, the incarnation, and whether it was a full report."""

    heard: ReportReply
    incarnation: int
    in_full: bool


class _Piece(msgspec.Struct, frozen=True):
    """As much as one call may carry. It brings the map from the sequence `over` to `sequence`."""

    over: int
    sequence: int
    changed: list[Held]
    gone: list[str]
    staged: bool  # a piece of a full report, not the last
    full: bool  # the last piece of a full report, which makes all of them the engine's holdings


class HoldingsLink:
    """Reports holdings for the engine's agent. `describe(sequence)` returns the engine's current record."""

    def __init__(self, reporter: MapReporter, engine: str, describe: Callable[[int], EngineRecord]) -> None:
        self._reporter, self._engine, self._describe = reporter, engine, describe
        self._sequence = 0  # of the newest piece
        self._at = 0  # the sequence that the map is at, by its answers; 0: it has nothing of this engine
        self._held: dict[str, Held] = {}  # what the map has at that sequence
        self._whole = (
            False  # whether those are the engine's holdings in the map; False: staged pieces of a full report
        )
        self._lost: _Piece | None = None  # the piece whose answer was lost
        self._heard, self._incarnation = ReportReply(known=False, version=None, edition=0), 0  # of the last report

    async def bring(self, held: Mapping[str, Held]) -> Delivered:
        """Make the map show that the engine holds `held`, and renew the heartbeat.

        Acknowledged pieces are not sent again. If the map has lost some of them, one full report follows. Raises
        MapUnavailable if the map loses that, too, or does not answer; the next call continues from there.
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
                self._begin_again()  # the same piece would be refused again
            raise
        message = "was lost again while the engine reported what it holds; reporting it again"
        raise MapUnavailable("placement map", message, retry_after_s=RETRY_AFTER_S)

    def _begin_again(self) -> None:
        self._at, self._held, self._whole, self._lost = 0, {}, False, None

    async def _bring(self, held: Mapping[str, Held]) -> bool:
        """Send all that is missing; return False if the map has lost earlier pieces."""
        if self._lost is not None and not await self._send(self._lost):
            return False
        for piece in self._pieces(held):
            if not await self._send(piece):
                return False
        return True

    async def _send(self, piece: _Piece) -> bool:
        """Send a piece; return whether the map now has it and all before it. A repeated piece takes effect once."""
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
        """Yield the pieces that bring the map from what it has to `held`, each based on the one before.

        Without any difference, yield one empty piece: a heartbeat.
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
    """Whether Redis refuses this piece in particular, rather than any write at the moment.

    In the latter case its error begins with a code (BUSY and others), for which redis-py may have an error class of
    its own. redis-py removes the code ERR.
    """
    code = str(error).partition(" ")[0]
    return type(error) is ResponseError and (not code.isupper() or code in ("ERR", "WRONGTYPE"))
