"""Brokers that are stopped, or whose directory vanishes, at random, while others work."""

from __future__ import annotations

import os
import random
from pathlib import Path

import streamlog
from replica.clusters import assert_equal_replicas
from streamlog.errors import StreamlogError


class Chaos:
    """At most one broker of three is out at a time, so that a majority of the metadata's copies is there."""

    def __init__(self, log: streamlog.Cluster, location: Path, rng: random.Random) -> None:
        self.log, self.location, self.rng = log, location, rng
        self.out = -1
        self.rounds = 0
        self.is_on = len(log.brokers()) > 1

    def step(self, chance: float = 1.0) -> None:
        """Take one out, or bring it back."""
        if self.is_on and self.rng.random() < chance:
            self.bring_back() if self.out >= 0 else self.take_out()

    def take_out(self) -> None:
        broker = self.rng.randrange(3)
        if self.rng.random() < 0.5:
            try:
                self.log.stop_broker(broker)
            except StreamlogError:
                return
        else:
            os.rename(self.path(broker), self.path(broker).with_suffix(".away"))
        self.out = broker
        self.rounds += 1

    def bring_back(self) -> None:
        away = self.path(self.out).with_suffix(".away")
        if away.exists():
            os.rename(away, self.path(self.out))
        try:
            self.log.start_broker(self.out)
        except StreamlogError as error:
            print(f"broker {self.out} is not back yet: {error}")
            return
        self.out = -1

    def path(self, broker: int) -> Path:
        return self.location / f"broker-{broker}"

    def end(self) -> None:
        """All are back, and all replicas equal."""
        if not self.is_on:
            return
        while self.out >= 0:
            self.bring_back()
        home = self.log._home
        self.log._refreshed()
        for broker in list(home.metadata.brokers):
            self.log.start_broker(broker)
        for topic in list(home.metadata.topics.values()):
            for number in range(topic.partitions):
                assert_equal_replicas(home.replicated(topic, number, 60.0))
        assert self.log.repair() == {}
        print(f"{self.rounds} times a broker was out")
        assert self.rounds
