"""Every error of streamlog.  A branch says what the caller may do; a leaf carries Kafka's name; fields say what happened.

StreamlogError
├── ConfigurationError(ValueError)      mend the call; nothing was opened or written
│     InvalidTopicError  InvalidPartitionsError  InvalidReplicationFactorError  UnknownConfigError  InvalidConfigError
│     InconsistentGroupProtocolError  InvalidTransactionTimeoutError
├── RetriableError                      the same call may succeed later
│     StorageFullError  BufferExhaustedError  RebalanceInProgressError  ConcurrentTransactionsError  UnstableOffsetCommitError
│     NotEnoughReplicasError  NotEnoughReplicasAfterAppendError  NotLeaderOrFollowerError  StreamlogTimeoutError(TimeoutError)
├── FencedError                         a newer owner exists: drop this object
│     ProducerFencedError  FencedInstanceIdError  InvalidProducerEpochError
├── CommitFailedError                   poll again: the partitions have moved
│     IllegalGenerationError  UnknownMemberIdError
├── AbortableTransactionError           abort the transaction, then begin again
│     TransactionAbortedError
├── InvalidStateError                   the call does not fit the object's state
│     ClosedError  ConcurrentModificationError  InvalidTxnStateError
├── WakeupError                         nothing is wrong: `wakeup()` was called
├── DataError                           this record cannot be taken or read
│     RecordTooLargeError  SerializationError  InvalidTimestampError  InvalidRecordError
│     OffsetOutOfRangeError(LookupError)  LogTruncationError  NoOffsetForPartitionError  UnsupportedCompressionError  OffsetMetadataTooLargeError
│     OutOfOrderSequenceError
├── StorageError(OSError)               reopen and recover; the file is named
│     DiskFailedError  CorruptRecordError  UnsupportedFormatError  UnsupportedFileSystemError  NotAClusterError  ResourceLimitError
└── UnknownTopicOrPartitionError(LookupError)  TopicAlreadyExistsError  GroupIdNotFoundError(LookupError)  NonEmptyGroupError
      TransactionalIdNotFoundError(LookupError)
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from streamlog.types import OffsetAndMetadata, TopicPartition


class StreamlogError(Exception):
    """The root of all errors raised by streamlog on purpose.

    Field: `broker`, the id of the broker whose directory the error is about, where there are several and that is known; else None.
    """

    broker: int | None = None


class ConfigurationError(StreamlogError, ValueError):
    """The call is wrong as it stands; nothing was opened or written."""


class InvalidTopicError(ConfigurationError):
    """A topic name that cannot be one, or that collides with another (`a.b` and `a_b`)."""


class InvalidPartitionsError(ConfigurationError):
    """A partition count that is not a positive number, or that does not grow."""


class InvalidReplicationFactorError(ConfigurationError):
    """More replicas were asked for than there are brokers."""


class UnknownConfigError(ConfigurationError):
    """An option that does not exist; the message names the nearest one that does."""


class InvalidConfigError(ConfigurationError):
    """A value of the wrong type or out of range, or a feature that this version does not have."""


class InvalidTransactionTimeoutError(ConfigurationError):
    """`transaction_timeout_ms` is out of range."""


class InconsistentGroupProtocolError(ConfigurationError):
    """A consumer and the members of its group share no partition assignment strategy."""


class RetriableError(StreamlogError):
    """The same call may succeed later."""


class StorageFullError(RetriableError):
    """The file system has no space left (ENOSPC, EDQUOT).  Nothing acknowledged is lost; free space and go on."""


class BufferExhaustedError(RetriableError):
    """`buffer_memory` was full for `max_block_ms`: the log cannot take records as fast as they are sent."""


class RebalanceInProgressError(RetriableError):
    """The group is being rebalanced; poll, then call again."""


class ConcurrentTransactionsError(RetriableError):
    """Another process is ending, or beginning, a transaction of this transactional id; try again."""


class UnstableOffsetCommitError(RetriableError):
    """An open transaction holds an offset of the group for this partition: where to begin is known when it has ended."""


class NotEnoughReplicasError(RetriableError):
    """Fewer replicas are in sync than `min_insync_replicas` asks for, or of the metadata log fewer than a majority; nothing was written."""


class NotEnoughReplicasAfterAppendError(RetriableError):
    """The record is in the leader's log, but there are fewer in-sync replicas than `min_insync_replicas` asks for: it may come to count, or not."""


class NotLeaderOrFollowerError(RetriableError):
    """The partition has no leader now: the brokers that have its records failed or are stopped.  The message names them."""


class StreamlogTimeoutError(RetriableError, TimeoutError):
    """A bounded wait ended; where a process was waited for, the message names it."""


class FencedError(StreamlogError):
    """A newer owner exists: drop this object."""


class ProducerFencedError(FencedError):
    """Another producer has taken over the `transactional_id`, or the transaction was aborted by others: it timed out, for one."""


class FencedInstanceIdError(FencedError):
    """Another consumer with the same `group_instance_id` took this one's place."""


class InvalidProducerEpochError(FencedError):
    """A producer wrote with an epoch older than one that has written since."""


class CommitFailedError(StreamlogError):
    """Offsets were not committed: the partitions are not this consumer's (any more).  Poll again."""


class IllegalGenerationError(CommitFailedError):
    """The offset is of another generation than the one in which its partition was assigned."""


class UnknownMemberIdError(CommitFailedError):
    """The consumer is not in the group: it never joined, was silent for too long, or the group's members are others."""


class AbortableTransactionError(StreamlogError):
    """The transaction cannot be committed any more: abort it, then begin again."""


class TransactionAbortedError(AbortableTransactionError):
    """The record was not written, because its transaction was aborted."""


class InvalidStateError(StreamlogError):
    """The call does not fit the object's state."""


class ClosedError(InvalidStateError):
    """The object was closed, or belongs to the process that this one was forked from."""


class ConcurrentModificationError(InvalidStateError):
    """A consumer was used by two threads at once."""


class InvalidTxnStateError(InvalidStateError):
    """The call does not fit the transaction's state; it changed nothing."""


class WakeupError(StreamlogError):
    """`Consumer.wakeup()` was called; nothing is wrong."""


class DataError(StreamlogError):
    """This record cannot be taken, or cannot be read."""


class RecordTooLargeError(DataError):
    """A record or batch above `max_request_size` (producer) or `max_message_bytes` (topic); the message says which."""


class SerializationError(DataError):
    """A key, value or header that is not bytes and has no serializer, or a serializer or deserializer that failed.

    Where a deserializer failed, `topic`, `partition`, `offset` and `next_offset` say on which record: `seek` to the last to pass over it.
    """

    def __init__(self, message: str, topic: str = "", partition: int = -1, offset: int = -1) -> None:
        super().__init__(message)
        self.topic, self.partition, self.offset, self.next_offset = topic, partition, offset, offset + 1


class InvalidTimestampError(DataError):
    """A timestamp that is not a whole number of milliseconds in [0, 2**63)."""


class InvalidRecordError(DataError):
    """A record that its topic does not take."""


class OffsetOutOfRangeError(DataError, LookupError):
    """The offset is below the log start or above the end, and `auto_offset_reset` is "none"."""


class LogTruncationError(OffsetOutOfRangeError):
    """Records that this consumer has read are not in the log any more (an unclean election, a power cut), and `auto_offset_reset` is "none".

    Field: `divergent`, `{TopicPartition: OffsetAndMetadata}`: where the log went on differently.  `seek` there, or elsewhere, to go on.
    """

    def __init__(self, message: str, divergent: dict[TopicPartition, OffsetAndMetadata]) -> None:
        super().__init__(message)
        self.divergent = divergent


class NoOffsetForPartitionError(DataError):
    """There is no committed offset, and `auto_offset_reset` is "none"."""


class OffsetMetadataTooLargeError(DataError):
    """The metadata of a committed offset is longer than 4,096 bytes."""


class OutOfOrderSequenceError(DataError):
    """Records that this producer wrote before are not in the log: they were lost at a power cut, or the log was cut."""


class UnsupportedCompressionError(DataError):
    """A codec that this version or installation does not have."""


class StorageError(StreamlogError, OSError):
    """A file could not be read or written as it must; the message names it."""

    def __str__(self) -> str:  # OSError's own __str__ formats (errno, strerror); ours is one sentence
        return str(self.args[0]) if self.args else ""


class DiskFailedError(StorageError):
    """A write or sync failed.  The partition refuses writes until it is opened again and recovered."""


class ResourceLimitError(StorageError):
    """This process has reached its limit on open files (RLIMIT_NOFILE) or on the size of a file (RLIMIT_FSIZE), or the machine its own
    on open files.  No disk has failed.
    """


class CorruptRecordError(StorageError):
    """A visible batch does not hold what its checksum says.

    Fields: `path`, `position` (bytes), `expected` and `found` (what was compared), `next_offset` (the first offset
    after the damage that can be read, or the end of the log).
    """

    def __init__(self, message: str, path: str, position: int, expected: object, found: object, next_offset: int) -> None:
        super().__init__(message)
        self.path, self.position, self.expected, self.found = path, position, expected, found
        self.next_offset = next_offset


class UnsupportedFormatError(StorageError):
    """A file of a version that this program does not know: the file may be fine, the program is old."""

    def __init__(self, message: str, path: str = "", position: int = 0, next_offset: int = -1) -> None:
        super().__init__(message)
        self.path, self.position, self.next_offset = path, position, next_offset


class UnsupportedFileSystemError(StorageError):
    """The file system cannot keep streamlog's promises; `unsafe_filesystem=True` opens it all the same."""


class NotAClusterError(StorageError):
    """The directory is not a streamlog cluster, or holds a broker of another cluster."""


class UnknownTopicOrPartitionError(StreamlogError, LookupError):
    """The topic or partition does not exist (any more)."""


class TopicAlreadyExistsError(StreamlogError):
    """A topic of this name exists."""


class GroupIdNotFoundError(StreamlogError, LookupError):
    """There is no such group."""


class TransactionalIdNotFoundError(StreamlogError, LookupError):
    """Nobody has used this transactional id (or not for `transactional_id_expiration_ms`), or no hanging transaction begins there."""


class NonEmptyGroupError(StreamlogError):
    """The group has members; this is possible only when they have left."""
