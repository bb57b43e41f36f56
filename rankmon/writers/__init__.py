"""Writers of records: TensorBoard event files, JSONL files, memory, and writers in CLU's style.

They need neither TensorFlow nor JAX.
"""

from rankmon._util.files import RunLock
from rankmon.writers.base import Outcome, Record, SessionWriter, Writer
from rankmon.writers.clu import ScalarsWriter
from rankmon.writers.jsonl import JsonlWriter, read_jsonl
from rankmon.writers.memory import MemoryWriter
from rankmon.writers.mirror import MirrorWriter
from rankmon.writers.mlflow import MLflowWriter
from rankmon.writers.tensorboard import TensorBoardWriter
from rankmon.writers.wandb import WandbWriter

__all__ = [
    "JsonlWriter",
    "MLflowWriter",
    "MemoryWriter",
    "MirrorWriter",
    "Outcome",
    "Record",
    "RunLock",
    "ScalarsWriter",
    "SessionWriter",
    "TensorBoardWriter",
    "WandbWriter",
    "Writer",
    "read_jsonl",
]
