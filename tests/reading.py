"""Read run folders with both of TensorBoard's readers."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as ServerAccumulator,
)


def legacy_events(folder: Path) -> EventAccumulator:
    return EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0}
    ).Reload()


def server_events(folder: Path) -> ServerAccumulator:
    return ServerAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()


def scalar_steps(folder: Path, tag: str = "rank/H_L") -> list[int]:
    """Return the steps of a scalar, after asserting that both readers show the same ones."""
    legacy = [event.step for event in legacy_events(folder).Scalars(tag)]
    server = [event.step for event in server_events(folder).Tensors(tag)]
    assert legacy == server
    return legacy


def event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*tfevents*"))
