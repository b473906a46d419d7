"""The leadership of a partition: shared words that say who leads, who is in sync, and how far readers see.

    word            meaning                                                          stored by, under the partition's lock
    HWM             high watermark: the least end of the in-sync replicas' logs      who appended or copied
    BELL            two 32-bit words: bell and waiter flag (H17)                     publisher; waiters raise the flag
    STABLE          last stable offset; after HWM                                    publisher
    PLACE           leader's id + 1 and leader epoch in one word, so that nobody     who applies a change of the metadata
                    sees a leader with another's epoch
    IN_SYNC         the in-sync replicas, a bit each; also one about to join         who applies; the controller, before it lets one join
    VERSION         partition epoch of the metadata that the words show, plus 1;     who applies, last
                    0: nobody was here since the boot
    APPLYING        token of who is applying: where it died the words do not count   who applies
    MARKERS         offset after the last marker that the leader wrote; STABLE       appender of the marker, leader's log lock
                    waits until HWM has passed it
    FORMER          the place before the one that is being applied: its leader's      who applies
                    readers have to look again
    EPOCH_START     where the leader's epoch begins                                  who first leads in it, leader's log lock; before
                                                                                     ALIGNED in the leader's slot

A replica's own slot (`_log.state`) says how far its log goes; there HWM is the end of what is whole.  Readers load HWM here, then TURN in the
slot of the leader's replica; a change of leader stores TURN in every replica's slot after PLACE, and HWM moves on only after that.  So a
reader that sees a high watermark of the new leader's finds that its place is an old one (tests/model/replication.py).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

from streamlog._log import state
from streamlog._log.state import BELL, HWM
from streamlog._os.mapping import STRONG_ORDER
from streamlog._os.wake import barrier

WORDS = 16
STABLE, PLACE, IN_SYNC, VERSION, APPLYING, MARKERS, EPOCH_START, FORMER = range(2, 10)
assert (HWM, BELL) == (0, 1)  # as in a slot: a reader's word and a waiter's bell
MAX_BROKERS = 60  # ids 0 to 59: a bit each in IN_SYNC, 8 bits in PLACE
HOME = 60  # id of the copy of the metadata log that the home holds where there are two brokers
_BITS = 8


def place(leader: int, epoch: int) -> int:
    """Leader (-1: nobody) and epoch as one word."""
    return epoch << _BITS | leader + 1


def leader_of(word: int) -> int:
    """The leader; -1: nobody."""
    return (word & (1 << _BITS) - 1) - 1


def epoch_of(word: int) -> int:
    """The leader epoch."""
    return word >> _BITS


def mask(brokers: Iterable[int]) -> int:
    """A set of brokers as a word."""
    return sum(1 << broker for broker in brokers)


def members(word: int) -> list[int]:
    """The brokers of such a word, in order."""
    return [broker for broker in range(word.bit_length()) if word >> broker & 1]


def publish(words: memoryview, end: int, leader: memoryview) -> None:
    """All in-sync replicas have what is below `end`.  Under the partition's lock.

    The last stable offset follows the leader's, except that it waits for the high watermark to pass the markers that let it move.  The
    leader's words are read after `end` was: a transaction that begins below it is seen to be open.
    """
    first_open = leader[state.OPEN]
    stable = first_open - 1 if 0 < first_open <= end else end
    if end < min(words[MARKERS], leader[HWM]):
        stable = min(words[STABLE], end)
    if not STRONG_ORDER:
        barrier()
    words[HWM] = end
    words[STABLE] = max(words[STABLE], stable)
