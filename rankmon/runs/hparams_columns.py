"""Choose the first columns of TensorBoard's HPARAMS page.

TensorBoard shows the first five metrics in alphabetical order, unless one run says which ones it
wants. That run has to name the hyperparameters of all runs, so that no single run can write it.
"""

import io
import time
from collections.abc import Sequence
from pathlib import Path

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.summary.writer.record_writer import RecordWriter

from rankmon._util.files import PathLike, replace_file
from rankmon.writers import events
from rankmon.writers.event_files import PREFIX

FOLDER = "hparams_columns"
FIRST = ("rank/H_L", "loss", "rank/H_o", "rank/H_f", "rank/H_f_fixed")
_NAME = f"{PREFIX}0000000000.columns"


def write_hparams_columns(logdir: PathLike, *, first: Sequence[str] = FIRST) -> Path:
    """Write a run of its own that puts these metrics first; all others follow.

    Hyperparameters and metrics that runs add later have no column until this is called again.

    Args:
      logdir: the folder that is passed to TensorBoard as --logdir, with runs that have `hparams=`.
      first: tags of the first columns; those that no run has are left out.

    Returns:
      The event file. Delete its folder for TensorBoard's own order.

    Raises:
      ValueError: if no run below the folder has hyperparameters.
      OSError: if a file cannot be read or written.
    """
    top = Path(logdir).expanduser()
    target = top / FOLDER / _NAME
    target.unlink(missing_ok=True)  # TensorBoard would read its own columns back
    experiment = _experiment(top)
    if not experiment.hparam_infos:
        raise ValueError(
            f"expected runs with hyperparameters in {str(top)!r}, got none; train with "
            "RankMonitor(..., hparams={...}), or pass another folder"
        )
    metrics = {(info.name.tag, info.name.group): info for info in experiment.metric_infos}
    chosen = [metrics.pop(key) for tag in first for key in sorted(metrics) if key[0] == tag]
    del experiment.metric_infos[:]
    experiment.metric_infos.extend([*chosen, *metrics.values()])
    target.parent.mkdir(exist_ok=True)
    data, now = io.BytesIO(), time.time()
    records = RecordWriter(data)
    for event in (events.version_event(now), events.experiment_event(experiment, now)):
        records.write(event.SerializeToString())
    replace_file(target, data.getvalue())
    return target


def _experiment(top: Path) -> api_pb2.Experiment:
    """Return the columns that TensorBoard would show."""
    multiplexer = EventMultiplexer(size_guidance={"tensors": 1, "scalars": 1})
    multiplexer.AddRunsFromDirectory(str(top)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(top))
    context, request = Context(TBContext(data_provider=provider)), RequestContext()
    return context.experiment_from_metadata(
        request,
        "",
        include_metrics=True,
        hparams_run_to_tag_to_content=context.hparams_metadata(request, ""),
        data_provider_hparams=[],
    )
