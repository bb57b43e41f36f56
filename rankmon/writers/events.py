"""Build TensorBoard events from records, images, the layout and hyperparameters.

The protocol buffers and the functions that fill them in come from the tensorboard package, which
does not need TensorFlow.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Float
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams_plugin
from tensorboard.plugins.image import metadata as image
from tensorboard.plugins.text import metadata as text
from tensorboard.util.tensor_util import make_tensor_proto

from rankmon._util.hparams import Hparam
from rankmon.writers.base import Outcome

BUCKETS = 30


def version_event(wall_time: float) -> event_pb2.Event:
    """Return the first event of every file."""
    return event_pb2.Event(wall_time=wall_time, file_version="brain.Event:2")


def start_event(step: int, wall_time: float) -> event_pb2.Event:
    """Return the event that makes TensorBoard discard everything read for steps >= step."""
    log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    return event_pb2.Event(wall_time=wall_time, step=step, session_log=log)


def layout_event(layout: layout_pb2.Layout, step: int, wall_time: float) -> event_pb2.Event:
    """Return the event with the run's custom-scalars layout."""
    value = summary_pb2.Summary.Value(
        tag=custom_scalars.CONFIG_SUMMARY_TAG,
        metadata=_tensor_metadata(custom_scalars.create_summary_metadata()),
        tensor=make_tensor_proto(layout.SerializeToString(deterministic=True)),
    )
    return _summary_event([value], step, wall_time)


def record_event(
    step: int,
    wall_time: float,
    *,
    scalars: Mapping[str, float],
    arrays: Mapping[str, np.ndarray],
    texts: Mapping[str, str],
    hparams: Mapping[str, Hparam] = MappingProxyType({}),
) -> event_pb2.Event:
    """Return one event for a whole record, so that it is written completely or not at all.

    Args:
      step: the training step.
      wall_time: seconds since the epoch.
      scalars: tag -> number, written as float32, TensorBoard's precision.
      arrays: tag -> array, written as a histogram at the tag, and as a tensor at tag + "/values".
      texts: tag -> Markdown.
      hparams: hyperparameters; if there are any, the event also begins a session.
    """
    values = [
        *(_scalar(tag, value) for tag, value in scalars.items()),
        *(build(tag, array) for tag, array in arrays.items() for build in (_histogram, _values)),
        *(_text(tag, value) for tag, value in texts.items()),
        *([_session_start(hparams, wall_time)] if hparams else []),
    ]
    return _summary_event(values, step, wall_time)


def session_start_event(
    hparams: Mapping[str, Hparam], step: int, wall_time: float
) -> event_pb2.Event:
    """Return the event that begins a session on TensorBoard's HPARAMS page."""
    return _summary_event([_session_start(hparams, wall_time)], step, wall_time)


def experiment_event(experiment: api_pb2.Experiment, wall_time: float) -> event_pb2.Event:
    """Return the event with the columns of TensorBoard's HPARAMS page."""
    data = plugin_data_pb2.HParamsPluginData(experiment=experiment)
    return _summary_event([_hparams_value(hparams_plugin.EXPERIMENT_TAG, data)], 0, wall_time)


def session_end_event(outcome: Outcome, step: int, wall_time: float) -> event_pb2.Event:
    """Return the event that ends a session on TensorBoard's HPARAMS page."""
    info = plugin_data_pb2.SessionEndInfo(
        status=api_pb2.Status.Value(f"STATUS_{outcome.upper()}"), end_time_secs=wall_time
    )
    data = plugin_data_pb2.HParamsPluginData(session_end_info=info)
    value = _hparams_value(hparams_plugin.SESSION_END_INFO_TAG, data)
    return _summary_event([value], step, wall_time)


def image_event(tag: str, png: bytes, step: int, wall_time: float) -> event_pb2.Event:
    """Return the event of an image at a step.

    Raises:
      ValueError: if the bytes are not a PNG file.
    """
    # A PNG begins with its signature and the chunk IHDR: length, name, width, height.
    if png[:8] != b"\x89PNG\r\n\x1a\n" or png[12:16] != b"IHDR":
        raise ValueError(
            f"expected the bytes of a PNG, got {len(png)} bytes that begin with {png[:8]!r}; save "
            "the picture as PNG first"
        )
    size = [str(int.from_bytes(png[at : at + 4], "big")).encode() for at in (16, 20)]
    metadata = image.create_summary_metadata(None, None)
    metadata.data_class = summary_pb2.DATA_CLASS_BLOB_SEQUENCE
    value = summary_pb2.Summary.Value(
        tag=tag, metadata=metadata, tensor=make_tensor_proto([*size, png])
    )
    return _summary_event([value], step, wall_time)


def histogram(values: Float[np.ndarray, "..."]) -> summary_pb2.HistogramProto:
    """Return a histogram of the finite values, with `BUCKETS` buckets of equal width.

    NaN and infinite values are left out, also from num, sum and sum_squares.
    """
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite)]
    if finite.size == 0:
        return summary_pb2.HistogramProto()
    low, high = finite.min(), finite.max()
    # Convex combinations: high - low would overflow if both are huge and of opposite sign.
    share = np.linspace(0.0, 1.0, BUCKETS + 1)
    edges = np.maximum.accumulate(np.clip((1 - share) * low + share * high, low, high))
    counts, _ = np.histogram(finite, bins=edges)
    with np.errstate(over="ignore"):  # sums of huge numbers may be infinite
        total, total_squares = np.sum(finite), np.sum(finite**2)
    return summary_pb2.HistogramProto(
        min=low,
        max=high,
        num=finite.size,
        sum=total,
        sum_squares=total_squares,
        bucket_limit=edges[1:],
        bucket=counts,
    )


def _scalar(tag: str, value: float) -> summary_pb2.Summary.Value:
    return summary_pb2.Summary.Value(tag=tag, simple_value=float(value))


def _histogram(tag: str, array: np.ndarray) -> summary_pb2.Summary.Value:
    return summary_pb2.Summary.Value(tag=tag, histo=histogram(array))


def _values(tag: str, array: np.ndarray) -> summary_pb2.Summary.Value:
    """Return an array as a tensor of the plugin "rankmon", which the Ranks tab reads."""
    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="rankmon")
    with np.errstate(over="ignore"):  # values beyond float32's range become infinite, as scalars do
        values = array.astype(np.float32)
    return summary_pb2.Summary.Value(
        tag=f"{tag}/values",
        metadata=_tensor_metadata(summary_pb2.SummaryMetadata(plugin_data=plugin)),
        tensor=make_tensor_proto(values),
    )


def _text(tag: str, value: str) -> summary_pb2.Summary.Value:
    return summary_pb2.Summary.Value(
        tag=tag,
        metadata=_tensor_metadata(text.create_summary_metadata(tag, None)),
        tensor=make_tensor_proto(value.encode()),
    )


def _session_start(hparams: Mapping[str, Hparam], wall_time: float) -> summary_pb2.Summary.Value:
    """Return the value that begins a session on the HPARAMS page."""
    # Without a group name every run gets its own row, even with equal hyperparameters.
    info = plugin_data_pb2.SessionStartInfo(start_time_secs=wall_time)
    for name, value in hparams.items():
        if isinstance(value, str):
            info.hparams[name].string_value = value
        elif isinstance(value, bool):  # before numbers, because a bool is an int
            info.hparams[name].bool_value = value
        else:
            info.hparams[name].number_value = value
    data = plugin_data_pb2.HParamsPluginData(session_start_info=info)
    return _hparams_value(hparams_plugin.SESSION_START_INFO_TAG, data)


def _hparams_value(tag: str, data: plugin_data_pb2.HParamsPluginData) -> summary_pb2.Summary.Value:
    return summary_pb2.Summary.Value(
        tag=tag,
        metadata=_tensor_metadata(hparams_plugin.create_summary_metadata(data)),
        tensor=hparams_plugin.NULL_TENSOR,
    )


def _tensor_metadata(metadata: summary_pb2.SummaryMetadata) -> summary_pb2.SummaryMetadata:
    metadata.data_class = summary_pb2.DATA_CLASS_TENSOR
    return metadata


def _summary_event(
    values: list[summary_pb2.Summary.Value], step: int, wall_time: float
) -> event_pb2.Event:
    return event_pb2.Event(
        wall_time=wall_time, step=step, summary=summary_pb2.Summary(value=values)
    )
