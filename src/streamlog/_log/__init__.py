"""A partition: segments, state slot, append, read, recovery, sync."""
