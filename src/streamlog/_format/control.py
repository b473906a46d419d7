"""Control batches: the marker that ends a producer's transaction in one partition.

One record, with Kafka's bytes (big-endian): key i16 version 0, i16 type (0 abort, 1 commit); value i16 version 0, i32 coordinator epoch.
The batch has the attributes TRANSACTIONAL and CONTROL, the producer's id, an epoch above that of the records that it ends (KIP-890), and
no sequence.  It takes an offset and is shown to nobody.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from streamlog._format.batch import Batch

from streamlog._format import batch as fmt

KEY, VALUE = struct.Struct(">hh"), struct.Struct(">hi")
ABORT, COMMIT = 0, 1


def encode_marker(*, commit: bool) -> tuple[int, bytes]:
    """Attributes and columns of a marker."""
    attributes, columns = fmt.encode_rows([VALUE.pack(0, 0)], [KEY.pack(0, COMMIT if commit else ABORT)])
    return attributes | fmt.TRANSACTIONAL | fmt.CONTROL, columns


def is_commit(batch: Batch) -> bool:
    """Whether a control batch commits.  Raises ValueError where it is of a kind that this program does not know."""
    keys = batch.columns().keys
    found = [] if keys is None else keys.to_list()
    if len(found) != 1 or len(found[0]) < KEY.size or KEY.unpack_from(found[0])[1] not in (ABORT, COMMIT):
        raise ValueError(f"offset {batch.base_offset}: a control batch with the keys {found} is neither commit nor abort")
    return bool(KEY.unpack_from(found[0])[1] == COMMIT)
