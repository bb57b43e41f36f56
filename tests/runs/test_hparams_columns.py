"""The columns of TensorBoard's HPARAMS page, as TensorBoard's own plugin computes them."""

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.backend_context import Context

from rankmon.runs.hparams_columns import FOLDER, write_hparams_columns
from rankmon.runs.read import read_runs
from rankmon.writers import Record, TensorBoardWriter

SCALARS = {
    name: 1.0 for name in ("condition_number/0", "effective_rank/0", "gap/H_L", "lemma8/square")
}
RANKS = {"rank/H_L": 5.0, "loss": 0.5, "rank/H_f": 3.0}


def run(folder, hparams, scalars):
    with TensorBoardWriter(folder) as writer:
        writer.write(Record(0, 1, 0.0, scalars, {}, {}, hparams))


@pytest.fixture
def logs(tmp_path):
    run(tmp_path / "a", {"lr": 0.1, "adam": True}, SCALARS | RANKS)
    run(tmp_path / "b", {"lr": 0.2, "decay": "no"}, SCALARS | RANKS | {"rank/H_o": 2.0})
    return tmp_path


def columns(logdir):
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(logdir)).Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(logdir))))
    found = context.experiment_from_metadata(
        RequestContext(),
        "",
        include_metrics=True,
        hparams_run_to_tag_to_content=context.hparams_metadata(RequestContext(), ""),
        data_provider_hparams=[],
    )
    return [info.name for info in found.hparam_infos], [i.name.tag for i in found.metric_infos]


def test_ranks_and_the_loss_come_first_and_nothing_is_lost(logs):
    hparams, metrics = columns(logs)
    assert metrics[:2] == ["condition_number/0", "effective_rank/0"]
    path = write_hparams_columns(logs)
    assert path.parent == logs / FOLDER
    chosen, others = ["rank/H_L", "loss", "rank/H_o", "rank/H_f"], list(SCALARS)
    assert columns(logs) == (hparams, [*chosen, *others])
    assert set(hparams) >= {"lr", "adam", "decay"}
    assert [one.name for one in read_runs(logs)] == ["a", "b"]


def test_another_call_takes_new_runs_and_other_columns(logs):
    write_hparams_columns(logs)
    run(logs / "c", {"width": 3}, {"dead_share/0": 0.5})
    write_hparams_columns(logs, first=["dead_share/0", "not/logged"])
    hparams, metrics = columns(logs)
    assert set(hparams) >= {"lr", "adam", "decay", "width"}
    assert metrics[0] == "dead_share/0"
    assert len(metrics) == len(SCALARS | RANKS) + 2


def test_a_folder_without_hyperparameters(tmp_path):
    with TensorBoardWriter(tmp_path / "a") as writer:
        writer.write(Record(0, 1, 0.0, RANKS, {}, {}))
    with pytest.raises(ValueError, match="hparams"):
        write_hparams_columns(tmp_path)
    assert not (tmp_path / FOLDER).exists()
