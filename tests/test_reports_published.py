# SPDX-License-Identifier: Apache-2.0
"""A round trip with numbers that nobody here made: MMSelfSup 0.x's own tables, read back cell by cell from our pages.

`golden/mmselfsup_0x.csv` holds them as they were collected from that project's files, in its words; the map below from
its words to places on our pages is written by hand and knows nothing of how the figures were imported.
"""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reports import algorithm
from suite.render import render
from suite.spec import Metric
from suite.testing import EMPTY
from tests.report_samples import EVALUATORS, evaluator

RAW = Path(__file__).parent / "golden" / "mmselfsup_0x.csv"
ROWS = 435
"""Figures of MMSelfSup 0.x in the collection: 413 cells of README tables and 22 of metafiles."""
SECTIONS = {
    "ImageNet Linear Evaluation": "ImageNet linear evaluation",
    "ImageNet Nearest-Neighbor Classification": "ImageNet nearest neighbours (kNN)",
    "VOC SVM / Low-shot SVM": "VOC07 SVM and low-shot SVM",
    "Places205 Linear Evaluation": "Places205 linear evaluation",
    "Pascal VOC 2007 + 2012": "Pascal VOC07+12 detection",
    "COCO2017": "COCO detection and instance segmentation",
    "Pascal VOC 2012 + Aug": "Pascal VOC12 segmentation",
}
COLUMNS = {
    "SVM": "mAP", "AP50": "AP50", "mIOU": "mIoU", "mAP(Box)": "AP", "AP50(Box)": "AP50", "AP75(Box)": "AP75",
    "mAP(Mask)": "mask AP", "AP50(Mask)": "mask AP50", "AP75(Mask)": "mask AP75", "Linear Evaluation": "top-1",
    "Top 1 Accuracy": "top-1", "Fine-tuning Top-1": "top-1", "Pre-train resolution": "pre-training",
    "Fine-tuning resolution": "fine-tuning", "AvgPool": "AvgPool",
}  # fmt: skip
PAGES = {"relativelocation": "relative-loc", "relative_loc": "relative-loc", "rotationprediction": "rotation-pred",
         "rotation_pred": "rotation-pred", "moco": "mocov2"}  # fmt: skip
BACKBONES = {"ViT-B/16": "vit-base-p16", "Swin-Base": "swin-base"}
TITLES = {
    "detection": evaluator(
        "detection", "Detection", "detection",
        [Metric(name, title) for name, title in (("ap50", "AP50"), ("map", "AP"), ("ap75", "AP75"), ("mask_map", "mask AP"),
                                                 ("mask_ap50", "mask AP50"), ("mask_ap75", "mask AP75"))],
    ),
    "segmentation": evaluator("segmentation", "Segmentation", "segmentation", [Metric("miou", "mIoU")]),
    "finetune": evaluator("finetune", "Fine-tuning", "classification", [Metric("top1", "top-1")]),
}  # fmt: skip
FINE_TUNED = {"cae", "mae", "maskfeat", "simmim"}


class Tables(HTMLParser):
    """Title to (heads, rows) of every table of a page; a row is (kind of its body, texts)."""

    def __init__(self):
        super().__init__()
        self.found, self.kind, self.text, self.title = {}, "", None, ""

    def handle_starttag(self, tag, attributes):
        if tag in ("th", "td", "caption"):
            self.text = []
        elif tag == "tbody":
            self.kind = dict(attributes).get("class", "")
        elif tag == "tr":
            self.row = []
        elif tag == "small" and self.text is not None:
            self.text.append("\n")

    def handle_data(self, data):
        if self.text is not None:
            self.text.append(data)

    def handle_endtag(self, tag):
        if tag == "caption":
            self.title = "".join(self.text)
            self.found[self.title] = ([], [])
        elif tag in ("th", "td"):
            self.row.append("".join(self.text).strip())
        elif tag == "tr":
            heads, rows = self.found[self.title]
            rows.append((self.kind, self.row)) if heads else heads.extend(self.row)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The algorithm pages of published records alone: no run, no recipe."""
    out = tmp_path_factory.mktemp("published")
    render(algorithm.build([], {}, EVALUATORS | TITLES, EMPTY), out, ["html"])
    found = {}
    for path in out.glob("*.html"):
        reader = Tables()
        reader.feed(path.read_text())
        found[path.stem] = reader.found
    return found


def raw():
    with RAW.open(newline="") as file:
        return list(csv.DictReader(file))


def place(row):
    """(page, table, column, test of the preset's name) of a collected row."""
    name = row["algorithm"].lower()
    page = PAGES.get(name, name)
    task = row["task"].removeprefix("Results and Models / ").partition(" / ")[2]
    fine = page in FINE_TUNED
    section = SECTIONS.get(task) or ("ImageNet fine-tuning" if fine else "ImageNet linear evaluation")
    metric = row["metric"]
    column = COLUMNS.get(metric) or metric.replace("k=", "k = ")
    model = row["pretrain_model"]
    if model in BACKBONES:
        return page, section, column, lambda preset: preset.startswith(BACKBONES[model])
    model = re.sub(r"_in1k(?=$)", "", model.replace("_linear-", "_"))
    for prefix in (f"{page}_", "deepcluster-", "interclr-moco_"):
        model = model.removeprefix(prefix)
    return page, section, column, lambda preset: re.sub(r"_in1k$", "", preset) == model


def cells(pages, row):
    """Texts of the cells that should hold a collected row."""
    page, section, column, fits = place(row)
    heads, rows = pages[page][section]
    at = [head.split("\n")[0] for head in heads].index(column)
    return [texts[at] for kind, texts in rows if kind == "published" and "MMSelfSup 0.x" in texts[0] and fits(texts[1])]


def test_every_figure_of_mmselfsup_0x_stands_on_its_page(pages):
    rows = raw()
    assert len(rows) == ROWS
    lost = [(row["algorithm"], row["pretrain_model"], row["metric"], row["value"], cells(pages, row)) for row in rows
            if row["value"] not in {part.rstrip("*") for text in cells(pages, row) for part in text.split(" / ")}]  # fmt: skip
    assert lost == []


def test_no_other_figure_claims_to_be_of_mmselfsup_0x(pages):
    """Backwards: every filled cell of those rows is one of the collected figures, so none was made up or moved."""
    known = {}
    for row in raw():
        page, section, column, _ = place(row)
        known.setdefault((page, section, column), set()).add(row["value"])
    count = 0
    for page, tables in pages.items():
        for section, (heads, rows) in tables.items():
            for kind, texts in rows:
                if kind != "published" or not texts[0].startswith("MMSelfSup 0.x"):
                    continue
                for head, text in zip(heads[3:], texts[3:], strict=True):
                    for value in text.split(" / ") if text != "–" else ():
                        assert value.rstrip("*") in known[page, section, head.split("\n")[0]], (page, section, head, text)
                        count += 1
    assert count == 430, "435 rows; five metafiles repeat the only cell of their README"


def test_pretraining_and_fine_tuning_resolution_stay_with_their_accuracy(pages):
    heads, rows = pages["simmim"]["ImageNet fine-tuning"]
    names = [head.split("\n")[0] for head in heads]
    at = [names.index(name) for name in ("pre-training", "fine-tuning", "top-1")]
    mine = [tuple(texts[i] for i in at) for _, texts in rows if texts[0].startswith("MMSelfSup 0.x")]
    assert mine == [("192", "192", "82.9"), ("192", "224", "83.5")]


def test_doubtful_figures_say_so(pages):
    heads, rows = pages["simsiam"]["Pascal VOC12 segmentation"]
    column = [head.split("\n")[0] for head in heads].index("mIoU")
    mine = {texts[1]: texts[column] for _, texts in rows if texts[0].startswith("MMSelfSup 0.x")}
    assert mine == {"resnet50_8xb32-coslr-100e_in1k": "48.35*", "resnet50_8xb32-coslr-200e_in1k": "46.27*"}
