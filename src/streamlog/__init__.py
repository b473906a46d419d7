"""streamlog: Kafka's log as a library.  `open` a directory; write with a `Producer`, read with a `Consumer`; no server.

    import streamlog

    with streamlog.open("events") as log:
        log.create_topic("clicks", partitions=4, exist_ok=True)
        with log.producer() as producer:
            producer.send("clicks", key="user-1", value="/home")
        with log.consumer("clicks", group_id="report", auto_offset_reset="earliest", consumer_timeout_ms=100) as consumer:
            for record in consumer:
                print(record.partition, record.offset, record.key, record.value)

A **cluster** is a directory that any number of processes have open at once; each may be killed at any instant without harm.  A **topic**
has **partitions**; a partition is a log of records, each with an **offset**, kept in **segment** files.
Consumers with a ``group_id`` share partitions and commit how far they are.  With ``brokers=3``, or their directories, a
partition has **replicas** in several of them: a leader, followers, in-sync sets, as in Kafka.

Durability: under "os" (the default) an acknowledged record survives the death of any process, and may be lost at a power cut; under
"fsync" it is on the disk.  Limits: a record and a batch of 1 MiB unless configured, 10,000 partitions a topic.  Local file systems only.  After
`fork` a cluster opens itself again in the child; producers and consumers belong to the process that made them.  Columns that
`poll_batches` returns stay valid as long as they are held.
"""

from streamlog._version import __version__
from streamlog.cluster import Cluster, open
from streamlog.errors import (
    AbortableTransactionError,
    BufferExhaustedError,
    ClosedError,
    CommitFailedError,
    ConcurrentModificationError,
    ConcurrentTransactionsError,
    ConfigurationError,
    CorruptRecordError,
    DataError,
    DiskFailedError,
    FencedError,
    FencedInstanceIdError,
    GroupIdNotFoundError,
    IllegalGenerationError,
    InconsistentGroupProtocolError,
    InvalidConfigError,
    InvalidPartitionsError,
    InvalidProducerEpochError,
    InvalidRecordError,
    InvalidReplicationFactorError,
    InvalidStateError,
    InvalidTimestampError,
    InvalidTopicError,
    InvalidTransactionTimeoutError,
    InvalidTxnStateError,
    LogTruncationError,
    NonEmptyGroupError,
    NoOffsetForPartitionError,
    NotAClusterError,
    NotEnoughReplicasAfterAppendError,
    NotEnoughReplicasError,
    NotLeaderOrFollowerError,
    OffsetMetadataTooLargeError,
    OffsetOutOfRangeError,
    OutOfOrderSequenceError,
    ProducerFencedError,
    RebalanceInProgressError,
    RecordTooLargeError,
    ResourceLimitError,
    RetriableError,
    SerializationError,
    StorageError,
    StorageFullError,
    StreamlogError,
    StreamlogTimeoutError,
    TopicAlreadyExistsError,
    TransactionAbortedError,
    TransactionalIdNotFoundError,
    UnknownConfigError,
    UnknownMemberIdError,
    UnknownTopicOrPartitionError,
    UnstableOffsetCommitError,
    UnsupportedCompressionError,
    UnsupportedFileSystemError,
    UnsupportedFormatError,
    WakeupError,
)
from streamlog.topic import Topic
from streamlog.types import (
    BatchMetadata,
    BrokerDescription,
    ClusterDescription,
    Damage,
    Finding,
    GroupDescription,
    GroupListing,
    GroupMetadata,
    HangingTransaction,
    MemberDescription,
    OffsetAndMetadata,
    OffsetAndTimestamp,
    PartitionDescription,
    Reassignment,
    Record,
    RecordMetadata,
    TimestampType,
    TopicDescription,
    TopicPartition,
    TransactionDescription,
    TransactionListing,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from streamlog._check import check
    from streamlog._client.batch import Delivery
    from streamlog._client.writer import BatchWriter
    from streamlog.consumer import Consumer
    from streamlog.metrics import ConsumerMetrics, ProducerMetrics
    from streamlog.partitioners import Partitioner
    from streamlog.producer import Producer
    from streamlog.record_batch import RecordBatch

_LATER = {
    "BatchWriter": "_client.writer",
    "Consumer": "consumer",
    "ConsumerMetrics": "metrics",
    "Delivery": "_client.batch",
    "Partitioner": "partitioners",
    "Producer": "producer",
    "ProducerMetrics": "metrics",
    "RecordBatch": "record_batch",
    "check": "_check",
}


def __getattr__(name: str) -> object:
    """Import what opening a cluster does not need when it is first asked for."""
    if name not in _LATER:
        raise AttributeError(f"module 'streamlog' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"streamlog.{_LATER[name]}"), name)


__all__ = [
    "AbortableTransactionError",
    "BatchMetadata",
    "BatchWriter",
    "BrokerDescription",
    "BufferExhaustedError",
    "ClosedError",
    "Cluster",
    "ClusterDescription",
    "CommitFailedError",
    "ConcurrentModificationError",
    "ConcurrentTransactionsError",
    "ConfigurationError",
    "Consumer",
    "ConsumerMetrics",
    "CorruptRecordError",
    "Damage",
    "DataError",
    "Delivery",
    "DiskFailedError",
    "FencedError",
    "FencedInstanceIdError",
    "Finding",
    "GroupDescription",
    "GroupIdNotFoundError",
    "GroupListing",
    "GroupMetadata",
    "HangingTransaction",
    "IllegalGenerationError",
    "InconsistentGroupProtocolError",
    "InvalidConfigError",
    "InvalidPartitionsError",
    "InvalidProducerEpochError",
    "InvalidRecordError",
    "InvalidReplicationFactorError",
    "InvalidStateError",
    "InvalidTimestampError",
    "InvalidTopicError",
    "InvalidTransactionTimeoutError",
    "InvalidTxnStateError",
    "LogTruncationError",
    "MemberDescription",
    "NoOffsetForPartitionError",
    "NonEmptyGroupError",
    "NotAClusterError",
    "NotEnoughReplicasAfterAppendError",
    "NotEnoughReplicasError",
    "NotLeaderOrFollowerError",
    "OffsetAndMetadata",
    "OffsetAndTimestamp",
    "OffsetMetadataTooLargeError",
    "OffsetOutOfRangeError",
    "OutOfOrderSequenceError",
    "PartitionDescription",
    "Partitioner",
    "Producer",
    "ProducerFencedError",
    "ProducerMetrics",
    "Reassignment",
    "RebalanceInProgressError",
    "Record",
    "RecordBatch",
    "RecordMetadata",
    "RecordTooLargeError",
    "ResourceLimitError",
    "RetriableError",
    "SerializationError",
    "StorageError",
    "StorageFullError",
    "StreamlogError",
    "StreamlogTimeoutError",
    "TimestampType",
    "Topic",
    "TopicAlreadyExistsError",
    "TopicDescription",
    "TopicPartition",
    "TransactionAbortedError",
    "TransactionDescription",
    "TransactionListing",
    "TransactionalIdNotFoundError",
    "UnknownConfigError",
    "UnknownMemberIdError",
    "UnknownTopicOrPartitionError",
    "UnstableOffsetCommitError",
    "UnsupportedCompressionError",
    "UnsupportedFileSystemError",
    "UnsupportedFormatError",
    "WakeupError",
    "__version__",
    "check",
    "open",
]
