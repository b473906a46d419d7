"""Files in `run/` of topics that were deleted: the last process that leaves removes them.  Nobody has them mapped then (H7)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from streamlog._replica.home import Home

from streamlog._format import names
from streamlog._replica.metadata import TOPIC_ID


def sweep(home: Home) -> None:
    """Remove the state of topics that the metadata do not have.  With nobody else here."""
    home.metadata.refresh(1.0)  # others may have made some since
    run = f"{home.path}/{names.RUN}"
    kept = {topic_id.hex() for topic_id in (TOPIC_ID, *home.metadata.by_id)}
    for name in home.fs.listdir(run):
        topic_id, _, rest = name.partition(".")
        if len(topic_id) == 2 * len(TOPIC_ID) and rest.endswith(("state", "leaders")) and topic_id not in kept:
            home.fs.unlink(f"{run}/{name}")
