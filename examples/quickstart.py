"""The README's first lines: write records, read them back."""

import tempfile

import streamlog

with tempfile.TemporaryDirectory() as directory, streamlog.open(f"{directory}/events") as log:  # a directory; nothing to start
    log.create_topic("clicks", partitions=4, exist_ok=True)
    with log.producer() as producer:
        producer.send("clicks", key="user-1", value="/home")
    with log.consumer("clicks", auto_offset_reset="earliest", consumer_timeout_ms=100) as consumer:
        for record in consumer:  # another process may do this at the same time
            print(record.partition, record.offset, record.key, record.value)
