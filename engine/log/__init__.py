"""The order log and what is read back from it.

Writing (one thread writes, another may sync)::

    log = Log.open(FileStorage(directory), Header(build=version, configuration_digest=…, market_id=…, created_ns=…))
    result = replay(log.reader(), on_events=…)        # result.engine as it was, result.digest to go on with
    ticket = log.write([(time_ns, participant, raw_commands), …])   # numbers ticket.first..ticket.last
    log.sync()                                         # blocks; now they are durable
    log.write_mark(sequence, digest.mark(), engine.digest())
    log.close()

Reading, also while somebody writes::

    for sequence, time_ns, participant, command in open_log(path).commands(): …
    result = replay(path)                              # applies and verifies; LogDamaged, DigestMismatch

``replay`` and ``open_log`` are in ``engine.log.replay`` (they need the engine, which the rest does not), the digest
in ``engine.log.digest``, what a log tells about a market or an order in ``engine.log.explain``.
"""

from engine.log.log import (
    LOG_NAME,
    Batch,
    Header,
    Log,
    LogReader,
    Mark,
    Record,
    Ticket,
    TornTail,
    encode_commands,
)
from engine.log.storage import DirectoryInUse, FileStorage, MemoryStorage, Storage, StoredFile

__all__ = [
    "LOG_NAME",
    "Batch",
    "DirectoryInUse",
    "FileStorage",
    "Header",
    "Log",
    "LogReader",
    "Mark",
    "MemoryStorage",
    "Record",
    "Storage",
    "StoredFile",
    "Ticket",
    "TornTail",
    "encode_commands",
]
