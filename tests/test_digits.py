# SPDX-License-Identifier: Apache-2.0
"""The embedded sets: same bytes everywhere, no leak between splits, and files that other tools can open."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from suite.data import card, load
from suite.data.compose import LUMA, RawRandom, colours, ink, sources
from suite.data.digits import DigitsParams, generate, load_digits_set
from suite.data.files import Options
from suite.data.imageset import digest
from suite.data.scenes import NAMES, PARTS, ScenesParams, load_scenes, scenes_folder
from suite.data.scenes import generate as generate_scenes
from suite.data.scenes_write import run_lengths, voc_palette
from suite.data.voc import read_annotation
from suite.errors import UsageError

SMALL = DigitsParams(copies=1)
FEW = ScenesParams(count=(10, 8, 12))
GOLDEN = {"train": "368bbeff530985e2", "test": "8614f13b814a0f55"}
GOLDEN_SCENES = "355456fa38dae28a"


@pytest.fixture(scope="module")
def digits() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    return {split: generate(split, SMALL) for split in ("train", "test")}


@pytest.fixture(scope="module")
def scenes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes_folder(FEW, tmp_path_factory.mktemp("cache"))[0]


def test_digits_are_the_same_bytes_on_every_machine(digits):
    assert {split: digest(*parts) for split, parts in digits.items()} == GOLDEN


def test_digits_shapes_and_classes(digits):
    images, labels, _ = digits["test"]
    assert images.shape == (450, 32, 32, 3) and images.dtype == np.uint8
    assert np.array_equal(np.bincount(labels), np.full(10, 45))
    assert len(digits["train"][0]) == 1347


def test_no_source_digit_is_in_both_splits(digits):
    train, test = set(digits["train"][2].tolist()), set(digits["test"][2].tolist())
    assert not train & test and len(train | test) == 1797


def test_labels_are_those_of_the_source_digits(digits):
    _, labels = sources()
    for _, mine, groups in digits.values():
        assert np.array_equal(mine, labels[groups])


def test_parameters_change_the_pictures(digits):
    assert digest(*generate("test", DigitsParams(copies=1, seed=1))) != digest(*digits["test"])


def test_card_states_the_default_sizes():
    params = DigitsParams()
    sizes = {"train": (1797 - 10 * params.test_per_class) * params.copies, "test": 10 * params.test_per_class * params.copies}
    assert card("digits").splits == sizes


def test_the_digit_stands_out_from_its_background():
    params = DigitsParams(clutter_contrast=(0.0, 0.0), noise=0.0, copies=1, half_tangent=1e-9)
    images, _, _ = generate("test", params)
    luminance = images @ np.array(LUMA) / 255
    spread = luminance.max((1, 2)) - luminance.min((1, 2))
    assert spread.min() > params.contrast[0] - params.spread - 0.01


def test_digits_come_back_from_the_cache_and_survive_a_damaged_file(tmp_path):
    first = load_digits_set("test", tmp_path, SMALL)
    (file,) = (tmp_path / "digits").iterdir()
    stamp = file.stat().st_mtime_ns
    assert load_digits_set("test", tmp_path, SMALL).fingerprint == first.fingerprint
    assert file.stat().st_mtime_ns == stamp
    file.write_bytes(file.read_bytes()[:-5000])
    again = load_digits_set("test", tmp_path, SMALL)
    assert np.array_equal(again.array, first.array) and file.stat().st_mtime_ns != stamp


def test_digits_do_without_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert len(load_digits_set("test", tmp_path / "file" / "cache", SMALL)) == 450


def test_unknown_split_names_the_valid_ones():
    with pytest.raises(UsageError, match="'trian'.*train, test"):
        load("digits", "trian")


def test_raw_random_is_uniform_and_repeatable():
    values = RawRandom(1, 2).uniform(-1.0, 3.0, 4000)
    assert np.array_equal(values, RawRandom(1, 2).uniform(-1.0, 3.0, 4000)) and values.min() >= -1 and values.max() < 3
    assert abs(values.mean() - 1.0) < 0.08 and abs(values.std() - 4 / 12**0.5) < 0.05
    assert sorted(RawRandom(3).permutation(50)) == list(range(50))
    assert set(RawRandom(4).integers(2, 5, 500).tolist()) == {2, 3, 4}


def test_colours_have_the_wanted_luminance():
    luminance = RawRandom(5).uniform(0.0, 1.0, 300)
    found = colours(luminance, RawRandom(6).uniform(-1.0, 1.0, 300, 2))
    assert found.min() >= 0 and found.max() <= 1
    np.testing.assert_allclose(found @ np.array(LUMA), luminance, atol=1e-12)


def test_ink_without_rotation_equals_a_bilinear_resize():
    glyph = np.tile(np.linspace(0.0, 1.0, 8), (1, 8, 1))
    cover = ink(glyph, (32, 32), np.array([[16.0, 16.0]]), np.array([32.0]), np.zeros(1))
    resized = np.asarray(Image.fromarray(glyph[0].astype(np.float32)).resize((32, 32), Image.Resampling.BILINEAR))
    ramp = np.clip((resized - 0.28) / 0.34, 0, 1)
    np.testing.assert_allclose(cover[0, 4:-4, 4:-4], (ramp * ramp * (3 - 2 * ramp))[4:-4, 4:-4], atol=1e-6)


def test_scenes_are_the_same_on_every_machine():
    scenes = [scene for part in PARTS for scene in generate_scenes(part, ScenesParams(count=(3, 3, 3)))]
    assert digest(*(d for s in scenes for d in (s.image, s.instances, repr(s.digits)))) == GOLDEN_SCENES


def test_scene_boxes_are_those_of_the_visible_pixels():
    found = [scene for part in PARTS for scene in generate_scenes(part, FEW)]
    assert all(1 <= len(scene.digits) <= 5 for scene in found)
    assert len({item.label for scene in found for item in scene.digits}) == 10
    for scene in found:
        assert set(np.unique(scene.instances)) - {0, 255} == set(range(1, len(scene.digits) + 1))
        for i, item in enumerate(scene.digits):
            rows, cols = np.nonzero(scene.instances == i + 1)
            assert item.box == (cols.min(), rows.min(), cols.max(), rows.max())


def test_a_scene_with_only_a_difficult_digit_of_a_class_is_labelled_zero():
    params = ScenesParams(count=(20, 0, 0), small=28)
    scenes = generate_scenes("train", params)
    values = {int(v) for scene in scenes for v in scene.labels()}
    assert values == {-1, 0, 1}
    for scene in scenes:
        for c in range(10):
            flags = [item.difficult for item in scene.digits if item.label == c]
            assert scene.labels()[c] == (-1 if not flags else 0 if all(flags) else 1)


def test_torchvision_opens_the_voc_layout(scenes_root):
    datasets = pytest.importorskip("torchvision.datasets")
    for split, count in {"train": 10, "val": 8, "trainval": 18, "test": 12}.items():
        boxes = datasets.VOCDetection(str(scenes_root), year="2007", image_set=split)
        maps = datasets.VOCSegmentation(str(scenes_root), year="2007", image_set=split)
        assert len(boxes) == len(maps) == count
    image, target = boxes[0]
    assert image.size == (96, 96) and target["annotation"]["object"][0]["name"] in NAMES
    assert set(np.unique(np.asarray(maps[0][1]))) <= {0, *range(1, 11), 255}


def test_masks_agree_with_boxes_and_classes(scenes_root):
    home = scenes_root / "VOCdevkit" / "VOC2007"
    for file in sorted((home / "Annotations").iterdir()):
        annotation = read_annotation(file)
        instances = np.asarray(Image.open(home / "SegmentationObject" / f"{file.stem}.png"))
        classes = np.asarray(Image.open(home / "SegmentationClass" / f"{file.stem}.png"))
        for i, (name, _, box) in enumerate(annotation.objects):
            rows, cols = np.nonzero(instances == i + 1)
            assert box == (cols.min() + 1, rows.min() + 1, cols.max() + 1, rows.max() + 1)
            assert set(classes[rows, cols]) == {NAMES.index(name) + 1}
        assert np.array_equal(classes == 255, instances == 255) and np.array_equal(classes == 0, instances == 0)


def test_pycocotools_opens_the_json(scenes_root):
    coco = pytest.importorskip("pycocotools.coco")
    api = coco.COCO(str(scenes_root / "annotations" / "instances_test.json"))
    assert len(api.imgs) == 12 and len(api.cats) == 10
    for item in api.anns.values():
        mask, (left, top, width, height) = api.annToMask(item), (int(v) for v in item["bbox"])
        rows, cols = np.nonzero(mask)
        assert (left, top, width, height) == (cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1)
        assert mask.sum() == item["area"] and item["iscrowd"] == 0
        assert (scenes_root / api.imgs[item["image_id"]]["file_name"]).is_file()


def test_the_reader_for_coco_agrees_with_the_one_for_voc(scenes_root):
    by_xml, by_json = (load(name, "val", scenes_root) for name in ("voc07", "coco"))
    columns = [by_xml.classes.index(name) for name in by_json.classes]
    assert np.array_equal(by_xml.labels[:, columns] >= 0, by_json.labels == 1)
    assert np.array_equal(by_xml.array, by_json.array)


def test_run_lengths_of_simple_masks():
    assert run_lengths(np.array([[0, 0], [1, 0]], dtype=bool)) == [1, 1, 2]
    assert run_lengths(np.array([[1, 0], [1, 1]], dtype=bool)) == [0, 2, 1, 1]
    assert run_lengths(np.zeros((2, 3), dtype=bool)) == [6]
    assert run_lengths(np.ones((2, 3), dtype=bool)) == [0, 6]


def test_palette_starts_like_vocs():
    assert voc_palette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
    assert voc_palette()[-3:] == [224, 224, 192]


def test_scene_set_is_multilabel_and_repaired_when_damaged(tmp_path):
    options = Options(cache=tmp_path)
    test = load_scenes("test", options, FEW)
    assert test.multilabel and test.labels.shape == (12, 10) and test.labels.dtype == np.int8
    assert test.array.shape == (12, 96, 96, 3) and (test.root / "VOCdevkit" / "VOC2007").is_dir()
    picture = test.paths[0]
    whole = picture.read_bytes()
    picture.write_bytes(whole[:500])
    again = load_scenes("test", options, FEW)
    assert again.fingerprint == test.fingerprint and picture.read_bytes() == whole
    assert load_scenes("trainval", options, FEW).fingerprint != test.fingerprint


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").is_dir(), reason="needs a path that cannot be written")
def test_scenes_live_in_a_private_folder_when_the_cache_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    test = load_scenes("test", Options(cache=tmp_path / "file"), FEW)
    assert len(test) == 12 and tmp_path not in test.root.parents


def test_no_source_digit_is_shared_by_train_val_and_test_scenes(monkeypatch):
    from suite.data import scenes

    pools = {}
    monkeypatch.setattr(scenes, "_scene", lambda glyphs, labels, pool, params, draws: pools.setdefault("now", pool))
    found = []
    for part in PARTS:
        pools.clear()
        generate_scenes(part, FEW)
        found.append(set(pools["now"].tolist()))
    train, val, test = found
    assert not train & val and not train & test and not val & test and len(train | val | test) == 1797


def test_coco_json_lists_the_same_pictures_as_voc(scenes_root):
    for split in ("train", "val", "trainval", "test"):
        content = json.loads((scenes_root / "annotations" / f"instances_{split}.json").read_text())
        ids = (scenes_root / "VOCdevkit/VOC2007/ImageSets/Main" / f"{split}.txt").read_text().split()
        assert [Path(image["file_name"]).stem for image in content["images"]] == ids
