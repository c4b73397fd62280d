# SPDX-License-Identifier: Apache-2.0
"""A training whose embeddings become all alike is flagged: in the log, in the record, on the pages."""

from __future__ import annotations

import json

import pytest

from suite import plugins
from suite.progress import Reporter
from suite.run import Options, prepare, pretrain
from suite.store import Store
from suite.testing import EMPTY

SCRATCH = '''
"""SimSiam without what keeps it from collapsing: no stop-gradient, no predictor, no batch norm at the end."""

from dataclasses import replace

from torch.nn import functional as F

from recipes.simsiam import RECIPE as SIMSIAM
from suite.method import Method
from suite.nn.heads import mlp


class Collapsing(Method):
    def __init__(self, config, backbone, data):
        super().__init__(config, backbone, data)
        self.projector = mlp((backbone.dim, config.dim, config.dim))

    def forward(self, batch):
        z1, z2 = (self.projector(self.backbone(x)) for x in batch.views)
        return {"loss": -F.cosine_similarity(z1, z2, dim=1).mean(), "features": z1}


RECIPE = replace(SIMSIAM, name="collapsing", title="Collapsing", method=Collapsing)
'''


@pytest.fixture(scope="module")
def ran(tmp_path_factory, cache):
    """Record, log rows and recipe of a run, by recipe."""
    folder = tmp_path_factory.mktemp("collapse")
    (folder / "collapsing.py").write_text(SCRATCH)
    found = {}
    for algo in (str(folder / "collapsing.py"), "simsiam"):
        job = prepare(algo, "tiny", ["epochs=4", "max_steps=40", "optim.lr=0.1"], 0, "", {})
        run = Store(folder / "runs").run(job.id)
        record = pretrain(job, run, Options(), Reporter())
        found[job.recipe.name] = record, [json.loads(line) for line in run.log.read_text().splitlines()], job.recipe
    return found


def test_the_log_follows_spread_and_rank(ran):
    for _, log, _ in ran.values():
        assert {10, 20, 30, 40} <= {row["step"] for row in log}
        assert all(row["feature_std"] >= 0 and row["feature_rank"] >= 0 for row in log)
    std = [row["feature_std"] for row in ran["collapsing"][1]]
    assert std[-1] < std[0] and std[-1] < 0.1


def test_a_collapsed_run_is_flagged_in_its_record(ran):
    record, log, _ = ran["collapsing"]
    (note,) = [note for note in record.notes if note.startswith("collapsed")]
    assert f"spread {record.feature_std:.3f}" in note and f"effective rank {record.feature_rank:.1f}" in note
    assert record.loss < -0.95 and record.feature_std == log[-1]["feature_std"]  # the loss alone would look splendid


def test_a_healthy_run_is_not(ran):
    record, _, _ = ran["simsiam"]
    assert not any("collapsed" in note for note in record.notes)
    assert record.feature_std > 0.5 and record.feature_rank > 5


@pytest.mark.parametrize("name", ["algorithm", "index"])
def test_the_pages_say_so(ran, name):
    records, recipes = [found[0] for found in ran.values()], {key: found[2] for key, found in ran.items()}
    documents = plugins.load("reports", name).build(records, recipes, plugins.load_all("evaluators"), EMPTY)
    lines = [line for one in documents for part in one.parts if isinstance(part, str) for line in part.splitlines()]
    flagged = [line for line in lines if "collapsed: training ended with embeddings of spread 0.0" in line]
    assert flagged and not any("simsiam" in line for line in flagged)
