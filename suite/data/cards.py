# SPDX-License-Identifier: Apache-2.0
"""Cards of the data sets that the user has on disk."""

from __future__ import annotations

from suite.data import cifar, cityscapes, voc
from suite.data.card import Card

IMAGEFOLDER = Card(
    name="imagefolder",
    title="Folder of images",
    task="classification",
    classes=None,
    splits={"train": "train/", "val": "val/ (or test/)", "test": "test/ (or val/, or a held-out tenth of train)"},
    layout="train/<class>/ and test/<class>/ (or val/), or <class>/ folders, or unlabelled pictures",
    licence="that of your images",
    obtain="put your images into one folder per class",
    kind=True,
)
IMAGELIST = Card(
    name="imagelist",
    title="List files",
    task="classification",
    classes=None,
    splits={"train": "train.txt", "val": "val.txt (or test.txt)", "test": "test.txt (or val.txt)"},
    layout="train.txt and test.txt (or val.txt; also in meta/) with `path label` or `path` on each line",
    licence="that of your images",
    obtain="write one line for each image, its path relative to the data root",
    kind=True,
)
CIFAR10 = Card(
    name="cifar10",
    title="CIFAR-10",
    task="classification",
    classes=cifar.CIFAR10,
    splits={"train": 50_000, "test": 10_000},
    layout="cifar-10-batches-py/ or cifar-10-batches-bin/, or train/<class>/ and test/<class>/ folders",
    licence="none stated; research use (Krizhevsky 2009)",
    obtain="download cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html and unpack it",
)
CIFAR100 = Card(
    name="cifar100",
    title="CIFAR-100",
    task="classification",
    classes=None,
    splits={"train": 50_000, "test": 10_000},
    layout="cifar-100-python/ or cifar-100-binary/, or train/<class>/ and test/<class>/ folders",
    licence="none stated; research use (Krizhevsky 2009)",
    obtain="download cifar-100-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html and unpack it",
)
IMAGENET = Card(
    name="imagenet",
    title="ImageNet-1k",
    task="classification",
    classes=None,
    splits={"train": 1_281_167, "val": 50_000},
    layout="train/<wnid>/ and val/<wnid>/, or a flat val/ with meta/val.txt",
    licence="non-commercial research (ImageNet terms of access)",
    obtain="register at https://image-net.org, download ILSVRC2012_img_{train,val}.tar and unpack into class folders",
    test="val",
)
IMAGENET21K = Card(
    name="imagenet21k",
    title="ImageNet-21k",
    task="classification",
    classes=None,
    splits={"train": "everything (the release has no split)"},
    layout="<wnid>/ folders (or train/<wnid>/)",
    licence="non-commercial research (ImageNet terms of access)",
    obtain="register at https://image-net.org, download the fall 2011 or winter 2021 release and unpack it",
    test=None,
)
PLACES205 = Card(
    name="places205",
    title="Places205",
    task="classification",
    classes=None,
    splits={"train": 2_448_873, "val": 20_500},
    layout="trainvalsplit_places205/{train,val}_places205.csv (or meta/{train,val}.txt) and the image folder",
    licence="non-commercial research (Places terms of use)",
    obtain="request imagesPlaces205_resize.tar.gz at http://places.csail.mit.edu and unpack it",
    test="val",
)
INAT2018 = Card(
    name="inat2018",
    title="iNaturalist 2018",
    task="classification",
    classes=None,
    splits={"train": 437_513, "val": 24_426},
    layout="train2018.json, val2018.json (or meta/{train,val}.txt) and train_val2018/",
    licence="non-commercial research; each photograph under its owner's licence",
    obtain="see https://github.com/visipedia/inat_comp/tree/master/2018",
    test="val",
)
VOC07 = Card(
    name="voc07",
    title="PASCAL VOC 2007",
    task="multilabel",
    classes=voc.CLASSES,
    splits={"train": 2_501, "val": 2_510, "trainval": 5_011, "test": 4_952},
    layout="VOCdevkit/VOC2007/{Annotations,ImageSets,JPEGImages}",
    licence="Flickr terms of use; research",
    obtain="download VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar from http://host.robots.ox.ac.uk/pascal/VOC",
    tasks=("multilabel", "detection", "segmentation"),
    train="trainval",
)
VOC12 = Card(
    name="voc12",
    title="PASCAL VOC 2012",
    task="segmentation",
    classes=voc.CLASSES,
    splits={"train": 5_717, "val": 5_823, "trainval": 11_540},
    layout="VOCdevkit/VOC2012/{Annotations,ImageSets,JPEGImages,SegmentationClass}",
    licence="Flickr terms of use; research",
    obtain="download VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC",
    tasks=("segmentation", "multilabel", "detection"),
    test="val",
)
VOC0712 = Card(
    name="voc07+12",
    title="PASCAL VOC 2007 + 2012",
    task="detection",
    classes=voc.CLASSES,
    splits={"train": 16_551, "test": 4_952},
    layout="VOCdevkit/VOC2007 and VOCdevkit/VOC2012",
    licence="Flickr terms of use; research",
    obtain="download both sets from http://host.robots.ox.ac.uk/pascal/VOC into one VOCdevkit",
    tasks=("detection", "multilabel"),
)
COCO = Card(
    name="coco",
    title="COCO 2017",
    task="detection",
    classes=None,
    splits={"train": 118_287, "val": 5_000},
    layout="annotations/instances_{train,val}2017.json, train2017/ and val2017/ (or in images/)",
    licence="annotations CC BY 4.0; each photograph under its Flickr licence",
    obtain="download train2017.zip, val2017.zip and annotations_trainval2017.zip from https://cocodataset.org",
    tasks=("detection", "multilabel"),
    test="val",
)
CITYSCAPES = Card(
    name="cityscapes",
    title="Cityscapes",
    task="segmentation",
    classes=cityscapes.CLASSES,
    splits={"train": 2_975, "val": 500, "test": 1_525},
    layout="leftImg8bit/<split>/<city>/ and gtFine/<split>/<city>/ with labelTrainIds or labelIds maps",
    licence="non-commercial research (Cityscapes terms of use)",
    obtain="register at https://www.cityscapes-dataset.com, download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip",
    test="val",
)
