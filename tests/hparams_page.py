"""Read the contents of TensorBoard's HPARAMS page for a log folder, from its own backend."""

from dataclasses import dataclass

from tensorboard import context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import (
    api_pb2,
    backend_context,
    get_experiment,
    list_session_groups,
)

UNKNOWN, SUCCESS, FAILURE = (
    api_pb2.Status.Value(f"STATUS_{name}") for name in ("UNKNOWN", "SUCCESS", "FAILURE")
)


@dataclass
class Page:
    """The contents of the HPARAMS page for a log folder."""

    columns: dict  # the name of a hyperparameter -> its type
    metrics: set  # tags
    groups: dict  # the name of a session group -> its SessionGroup


def page_of(logdir) -> Page:
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(logdir))
    backend = backend_context.Context(TBContext(data_provider=provider))
    request = context.RequestContext()
    every = [UNKNOWN, SUCCESS, FAILURE, api_pb2.Status.Value("STATUS_RUNNING")]
    experiment = get_experiment.Handler(
        request, backend, "", api_pb2.GetExperimentRequest(experiment_name="")
    ).run()
    names = [info.name for info in experiment.hparam_infos]
    asked = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=every,
        slice_size=100,
        col_params=[api_pb2.ColParams(hparam=name) for name in names],
    )
    found = list_session_groups.Handler(request, backend, "", asked).run()
    return Page(
        columns={info.name: info.type for info in experiment.hparam_infos},
        metrics={info.name.tag for info in experiment.metric_infos},
        groups={group.name: group for group in found.session_groups},
    )


def values(group) -> dict:
    return {name: getattr(v, v.WhichOneof("kind")) for name, v in group.hparams.items()}


def metrics(group) -> dict:
    return {metric.name.tag: metric.value for metric in group.metric_values}


def status(group) -> int:
    (session,) = group.sessions
    return session.status
