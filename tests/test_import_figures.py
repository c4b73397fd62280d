# SPDX-License-Identifier: Apache-2.0
"""`suite import`: other people's files become figures with a source, whatever they hold."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reports import _published
from suite import figures, importers
from suite.cli import main
from suite.errors import UsageError
from suite.figures import Context, Row
from suite.record import to_json
from tests.result_samples import proven

METRICS = {"knn": ["top1"], "linear": ["top1", "top5"]}
CONTEXT = Context(["mocov2", "relative-loc", "barlowtwins", "supervised"], lambda name: METRICS.get(name, []))

METAFILE = """
Collections:
  - Name: Relative_Loc
    Metadata: {Architecture: [ResNet]}
    README: configs/selfsup/relative_loc/README.md
Models:
  - Name: relative-loc_resnet50_8xb64-steplr-70e_in1k
    In Collection: Relative_Loc
    Metadata:
      Epochs: 70
      Batch Size: 512
    Results:
      - Task: Self-Supervised Image Classification
        Dataset: ImageNet-1k
        Metrics:
          Top 1 Accuracy: 39.60
          Inception Score: 3.2
    Config: configs/selfsup/relative_loc/relative-loc_resnet50_8xb64-steplr-70e_in1k.py
    Weights: https://example.org/a/relative-loc_20220225-84784688.pth
  - Name: mae_vit-base-p16_8xb512-amp-coslr-300e_in1k
    In Collection: MAE
    Results: null
    Downstream:
      - Type: Image Classification
        Metadata: {Epochs: 90, Batch Size: 16384}
        Results:
          - Task: Linear Evaluation
            Dataset: ImageNet-1k
            Metrics:
              Top 1 Accuracy: 60.8
        Config: configs/benchmarks/vit-base-p16_linear-8xb2048-coslr-90e_in1k.py
      - Type: Image Classification
        Results:
          - Task: Fine-tuning
            Dataset: ImageNet-1k
            Metrics:
              Top 1 Accuracy: 82.8
"""
TIMM = """model,top1,top1_err,top5,top5_err,param_count,img_size,crop_pct,interpolation
eva_giant_patch14_560.m30m_ft_in22k_in1k,89.786,10.214,98.992,1.008,"1,014.45",560,1.000,bicubic
resnet50.a1_in1k,80.210,19.790,94.700,5.300,25.56,288,1.000,bicubic
vit_base_patch16_224.moco-v2_in1k,70.000,30.000,90.000,10.000,86.57,224,0.900,bicubic
"""
MTEB = {
    "dataset_revision": "0b2714987fa4", "task_name": "CIFAR10ZeroShot", "mteb_version": "2.1.0", "evaluation_time": 3.5,
    "scores": {"train": [{"main_score": 0.1}],
               "test": [{"main_score": 0.848571, "accuracy": 0.848571, "hf_subset": "a", "languages": ["eng-Latn"]},
                        {"main_score": 0.848573, "hf_subset": "b", "scores_per_experiment": [{"accuracy": 0.1}]}]},
}  # fmt: skip


def read(path, text, context=CONTEXT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return importers.read(path, context)


def test_metafile_keeps_numbers_as_printed_and_says_what_has_no_place(tmp_path):
    found = read(tmp_path / "metafile.yml", METAFILE)
    assert [(row.algorithm, row.preset, row.dataset, row.metric, row.value) for row in found.rows] == [
        ("relative-loc", "resnet50_8xb64-steplr-70e_in1k", "imagenet", "linear/top1", "39.60"),
        ("mae", "vit-base-p16_8xb512-amp-coslr-300e_in1k", "imagenet", "linear/top1", "60.8"),
        ("mae", "vit-base-p16_8xb512-amp-coslr-300e_in1k", "imagenet", "finetune/top1", "82.8"),
    ]
    assert found.rows[0].note == "imported, no weights hash: relative-loc_20220225-84784688.pth"
    assert found.rows[0].protocol == "relative-loc_resnet50_8xb64-steplr-70e_in1k, epochs 70, batch size 512"
    assert found.rows[1].protocol == "vit-base-p16_linear-8xb2048-coslr-90e_in1k, epochs 90, batch size 16384"
    assert {row.file for row in found.rows} == {"metafile.yml"}, "no folder of this machine"
    assert len(found.left_out) == 1 and "Inception Score" in found.left_out[0]


def test_timm_rows_name_the_method_in_the_tag(tmp_path):
    found = read(tmp_path / "results-imagenet.csv", TIMM)
    assert [(row.algorithm, row.preset, row.dataset, row.metric, row.value) for row in found.rows][:3] == [
        ("eva", "eva_giant_patch14_560.m30m_ft_in22k_in1k", "imagenet", "finetune/top1", "89.786"),
        ("eva", "eva_giant_patch14_560.m30m_ft_in22k_in1k", "imagenet", "finetune/top5", "98.992"),
        ("supervised", "resnet50.a1_in1k", "imagenet", "finetune/top1", "80.210"),
    ]
    assert found.rows[4].algorithm == "mocov2"
    assert "1014.45 M parameters" in found.rows[0].note and found.rows[0].protocol == "560 px"
    assert read(tmp_path / "results-imagenet-real.csv", TIMM).rows[0].dataset == "imagenet-real"


def test_mteb_scores_are_percent_of_the_mean_over_subsets(tmp_path):
    path = tmp_path / "facebook__dinov2-base" / "rev" / "CIFAR10ZeroShot.json"
    (row,) = read(path, json.dumps(MTEB)).rows
    assert (row.algorithm, row.preset, row.metric, row.value) == (
        "dinov2", "facebook__dinov2-base", "mteb/main_score.CIFAR10ZeroShot", "84.8572",
    )  # fmt: skip
    assert row.source == "MTEB 2.1.0" and "mean of 2 subsets" in row.note and "revision 0b2714987fa4" in row.protocol


def test_contributed_json_speaks_our_names(tmp_path):
    text = {"task_name": "linear:moco", "model_name": "MoCo-v2", "scores": {"test": [{"top1": 67.5, "top5": 88.0, "x": 1}]}}
    found = read(tmp_path / "one.json", json.dumps(text))
    assert found.kind == "contributed"
    assert [(row.algorithm, row.metric, row.value, row.protocol) for row in found.rows] == [
        ("mocov2", "linear/top1", "67.5", "preset moco"), ("mocov2", "linear/top5", "88.0", "preset moco"),
    ]  # fmt: skip


def test_the_model_of_an_mteb_file_comes_from_its_meta_or_the_caller(tmp_path):
    with pytest.raises(UsageError, match="which model is that"):
        read(tmp_path / "a.json", json.dumps(MTEB))
    assert read(tmp_path / "a.json", json.dumps(MTEB), Context([], METRICS.get, "org/m")).rows[0].preset == "org__m"
    (tmp_path / "model_meta.json").write_text('{"name": "org/other"}')
    assert read(tmp_path / "a.json", json.dumps(MTEB)).rows[0].preset == "org__other"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.yml", "a: &x [1]\nb: *x\n", "line 2: references"),
        ("m.yml", "[" * 60, "line 1: nested deeper than 30"),
        ("m.yml", "a: [", "not YAML"),
        ("m.yml", "!!python/object/apply:os.system ['echo hi']", "no mapping"),
        ("m.yml", "Models: 3", "Models is not a list"),
        ("m.yml", "Models: []", "Models is empty"),
        ("m.yml", "Models: [x]", "Models[0] is not a mapping"),
        ("m.yml", METAFILE.replace("39.60", "many"), "Models[0].Results[0].Metrics.Top 1 Accuracy: 'many' is not a number"),
        ("m.yml", METAFILE.replace("39.60", "nan"), "'nan' is not a number"),
        ("m.yml", METAFILE.replace("39.60", "139.60"), "139.60 is not between 0 and 100"),
        ("m.yml", METAFILE.replace("MAE", '"../../x"'), "Models[1].In Collection: '../../x' is not a name"),
        ("m.yml", METAFILE.replace("In Collection: MAE", "In Collection: <b>"), "'<b>' is not a name"),
        ("r.csv", "model,top1\nx,1\n", "line 1: no column 'top5'"),
        ("r.csv", TIMM.replace("80.210", "81.210"), "line 3: top1 81.210 and top1_err 19.790 do not add up"),
        ("r.csv", TIMM.replace("80.210", ""), "line 3: top1: '' is not a number"),
        ("r.csv", TIMM.replace("resnet50.a1", "=cmd()"), "line 3: model: '=cmd()_in1k' is not a name"),
        ("r.csv", TIMM + "short\n", "line 5: img_size"),
        ("r.csv", b"model,\xff\xfe", "not UTF-8 at byte 6"),
        ("r.csv", TIMM + '"open', "unexpected end of data"),
        ("j.json", "[]", "not a record"),
        ("j.json", "{", "corrupted JSON at line 1"),
        ("j.json", "[" * 100_000, "nested too deeply"),
        ("j.json", '{"task_name": "x"}', "scores is not a mapping"),
        ("j.json", '{"task_name": "../x", "scores": {}}', "task_name: '../x' is not a name"),
        ("j.json", '{"task_name": "x", "model_name": "m", "scores": {"test": [{"main_score": 7}]}}', "not between 0 and 1"),
        ("j.json", '{"task_name": "knn", "model_name": "m", "scores": {"test": [{"a": 7}]}}', "a metric of knn (top1)"),
        ("j.json", '{"task_name": "knn", "model_name": "m", "scores": {"test": [{"top1": true}]}}', "'True' is not a number"),
        ("j.json", '{"schema": 9}', "schema 9 is not known"),
        ("x.txt", "", "unknown kind of file 'x.txt'"),
    ],
)  # fmt: skip
def test_wrong_files_are_one_line_with_file_and_place(tmp_path, name, text, message):
    with pytest.raises(UsageError) as caught:
        read(tmp_path / name, text)
    assert message in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


def test_large_files_are_not_read(tmp_path):
    with pytest.raises(UsageError, match="larger than 8 MiB"):
        read(tmp_path / "big.json", b" " * (figures.MOST + 1))
    with pytest.raises(UsageError, match="does not exist"):
        importers.read(tmp_path / "none.json", CONTEXT)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["yml", "csv", "json"]), at=st.integers(0, 2000), junk=st.binary(max_size=12))
def test_damaged_files_give_one_line_or_rows_never_a_traceback(tmp_path, kind, at, junk):
    whole = {"yml": METAFILE, "csv": TIMM, "json": json.dumps({**MTEB, "model_name": "m"})}[kind].encode()
    at %= len(whole)
    try:
        found = read(tmp_path / f"x.{kind}", whole[:at] + junk + whole[at + len(junk) :])
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        assert all(0 <= float(row.value) <= 100 for row in found.rows)


def row(**fields):
    return Row(**({"algorithm": "a", "preset": "p", "dataset": "d", "metric": "knn/top1", "value": "1.0", "source": "s",
                   "file": "f", "note": "n"} | fields))  # fmt: skip


def test_written_figures_merge_sort_and_are_read_by_the_pages(tmp_path):
    path = tmp_path / "imported-x.csv"
    assert figures.write(path, [row(preset="b"), row(preset="a", value="7.50")], _published.COLUMNS) == (2, 2)
    first = path.read_bytes()
    assert figures.write(path, [row(preset="a", value="7.50")], _published.COLUMNS) == (0, 2)
    assert path.read_bytes() == first
    assert figures.write(path, [row(preset="a", value="8")], _published.COLUMNS) == (1, 2)
    assert [(one.preset, one.text, one.source) for one in _published.read(tmp_path)] == [("a", "8", "s"), ("b", "1.0", "s")]
    with pytest.raises(UsageError, match="two figures for knn/top1"):
        figures.write(path, [row(value="1"), row(value="2")], _published.COLUMNS)
    path.write_text("a,b\n")
    with pytest.raises(UsageError, match="columns must be"):
        figures.write(path, [row()], _published.COLUMNS)


def test_a_row_has_every_column_that_the_pages_read():
    assert set(_published.COLUMNS) <= set(vars(row()))


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_writes_figures_and_publishes_records(place, capfd):
    Path("metafile.yml").write_text(METAFILE)
    assert main(["import", "metafile.yml"]) == 0
    target = Path("reports/published/imported-mmselfsup.csv")
    with target.open(newline="") as file:
        assert [one["value"] for one in csv.DictReader(file)] == ["82.8", "60.8", "39.60"]
    before = target.read_bytes()
    assert main(["import", "metafile.yml", "--name", "../../../evil"]) == 0
    assert sorted(path.name for path in target.parent.iterdir()) == ["imported-evil.csv", "imported-mmselfsup.csv"]
    assert main(["import", "metafile.yml"]) == 0 and target.read_bytes() == before
    assert "left out: " in capfd.readouterr().err
    Path("bad.json").write_text(to_json(replace(proven(), config={**proven().config, "epochs": 31})))
    assert main(["import", "bad.json"]) == 2
    err = capfd.readouterr().err
    assert "cannot be published" in err and err.count("\n") == 1 and not Path("reports/results").exists()
    frozen = Path(__file__).parent / "frozen" / "schema1" / "results" / "mocov2-digits-ac202cb4-s0.json"
    assert main(["import", str(frozen), "--stale"]) == 0
    assert Path("reports/results/mocov2-digits-ac202cb4-s0.json").is_file()


def test_nothing_is_taken_in_when_one_file_is_wrong(place, capfd):
    Path("metafile.yml").write_text(METAFILE)
    Path("wrong.yml").write_text("Models: 3")
    assert main(["import", "metafile.yml", "wrong.yml"]) == 2
    assert not Path("reports").exists() and "wrong.yml" in capfd.readouterr().err
