"""Fan-out: one topic, several groups; each group reads every record once, at its own pace, and remembers how far it is.

Orders are written once.  `billing` adds them up, `shipping` makes a list for each city, and `audit` comes later and still sees everything.
"""

import sys
import tempfile
from collections import defaultdict

import streamlog

ORDERS = "orders"
CITIES = ("Bern", "Lyon", "Oslo")


def write(log: streamlog.Cluster, first: int, count: int) -> None:
    """Some orders, keyed by customer."""
    with log.topic(ORDERS, key="str", value="json").producer() as producer:
        for number in range(first, first + count):
            producer.send(ORDERS, {"order": number, "cents": 100 + number, "city": CITIES[number % 3]}, key=f"customer-{number % 7}")


def read(log: streamlog.Cluster, group_id: str) -> list[streamlog.Record]:
    """What a group has not read yet."""
    orders = log.topic(ORDERS, key="str", value="json")
    with orders.consumer(group_id=group_id, auto_offset_reset="earliest", consumer_timeout_ms=0) as consumer:
        return list(consumer)


def main() -> int:
    """Returns the exit code: 0 if each group saw each order once."""
    with tempfile.TemporaryDirectory() as location, streamlog.open(location) as log:
        log.create_topic(ORDERS, partitions=3)
        total, shipping, seen = 0, defaultdict(list), []
        for first in (0, 50):
            write(log, first, 50)
            total += sum(record.value["cents"] for record in read(log, "billing"))
            for record in read(log, "shipping"):
                shipping[record.value["city"]].append(record.value["order"])
            print(f"after {first + 50} orders: billing has {total} cents, shipping has {sum(map(len, shipping.values()))} parcels")
        seen = [record.value["order"] for record in read(log, "audit")]
        print(f"audit, which came later, saw {len(seen)} orders; asked again it sees {len(read(log, 'audit'))}")
        for group in log.groups():
            description = log.describe_group(group.group_id)
            print(f"{group.group_id}: {sum(found.offset for found in description.offsets.values())} read, lag {sum(description.lag.values())}")
    complete = total == sum(100 + n for n in range(100)) and sorted(seen) == list(range(100))
    return 0 if complete and sum(map(len, shipping.values())) == 100 else 1


if __name__ == "__main__":
    sys.exit(main())
