"""Writers of records: TensorBoard event files, JSONL files, memory, and writers in CLU's style.

They need neither TensorFlow nor JAX.
"""

from rankmon._util.files import RunLock
from rankmon.writers.base import Outcome, Record, SessionWriter, Writer
from rankmon.writers.clu import ScalarsWriter
from rankmon.writers.jsonl import JsonlWriter, read_jsonl
from rankmon.writers.memory import MemoryWriter
from rankmon.writers.tensorboard import TensorBoardWriter

__all__ = [
    "JsonlWriter",
    "MemoryWriter",
    "Outcome",
    "Record",
    "RunLock",
    "ScalarsWriter",
    "SessionWriter",
    "TensorBoardWriter",
    "Writer",
    "read_jsonl",
]
