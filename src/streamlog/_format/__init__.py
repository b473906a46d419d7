"""The bytes on disk: pure functions between bytes and values.  No I/O, no clock, no logging."""
