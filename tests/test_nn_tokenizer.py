# SPDX-License-Identifier: Apache-2.0
"""Tokenizers: shapes, an architecture rebuilt from torch's own layers, and files that nobody trusts."""

from __future__ import annotations

import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from suite.errors import UsageError
from suite.nn.tokenizer import DalleTokenizer, PatchCodebook, Tokenizer, read_module_state, sample_pictures


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(width=8, vocabulary=16):
    tokenizer = DalleTokenizer(width, vocabulary)
    for i, p in enumerate(tokenizer.parameters()):
        p.copy_(randn(*p.shape, seed=i) * (0.1 if p.ndim == 1 else p[0].numel() ** -0.5))
    return tokenizer


def test_codebook_gives_the_nearest_patch():
    pictures = torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    book = PatchCodebook(12, 4).fit(pictures)
    tokens = book(pictures)
    assert tokens.shape == (20, 16) and tokens.dtype == torch.int64 and len(tokens.unique()) == 12
    patch = pictures[3, :, 8:12, 4:8].permute(1, 2, 0).flatten().double()
    assert tokens[3, 2 * 4 + 1] == (book.codes.double() - patch).square().sum(1).argmin()
    again = PatchCodebook(12, 4)
    again.load_state_dict(book.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(again(pictures), tokens)
    assert torch.equal(PatchCodebook(12, 4).fit(pictures).codes, book.codes)


def test_codebook_refuses_what_does_not_fit():
    with pytest.raises(UsageError, match="clusters of"):
        PatchCodebook(12, 8).fit(torch.rand(1, 3, 16, 16))
    with pytest.raises(UsageError, match="codebook needs sides that divide by 8"):
        PatchCodebook(4, 8)(torch.rand(1, 3, 20, 16))


def test_codebook_on_the_embedded_pictures(digits):
    pictures = sample_pictures(digits, 24, count=50)
    assert pictures.shape == (50, 3, 24, 24) and pictures.min() >= 0 and pictures.max() <= 1
    assert torch.equal(pictures, sample_pictures(digits, 24, count=50))
    tokens = PatchCodebook(32, 4).fit(pictures)(pictures)
    share = np.bincount(tokens.flatten().numpy(), minlength=32) / tokens.numel()
    assert share.max() < 0.5 and (share > 0).sum() > 16  # the task is not to predict one token


def test_dalle_encoder_equals_a_network_of_torchs_own_layers():
    tokenizer, state = filled(), filled().state_dict()

    def conv(name, x):
        weight, bias = state[f"{name}.w"].double(), state[f"{name}.b"].double()
        return nn.functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    x = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    h = conv("blocks.input", 0.8 * x.double() + 0.1)
    for group in range(1, 5):
        for block in (1, 2):
            name = f"blocks.group_{group}.block_{block}"
            r = h
            for i in range(1, 5):
                r = conv(f"{name}.res_path.conv_{i}", r.relu())
            h = (conv(f"{name}.id_path", h) if f"{name}.id_path.w" in state else h) + r / 64
        h = nn.functional.max_pool2d(h, 2) if group < 4 else h
    logits = conv("blocks.output.conv", h.relu())
    tokens = tokenizer(x)
    assert tokens.shape == (2, 6) and torch.equal(tokens, logits.argmax(1).flatten(1))
    assert len(tokens.unique()) > 1


def test_dalle_encoder_has_the_published_size():
    with torch.device("meta"):
        state = DalleTokenizer().state_dict()
    assert state["blocks.input.w"].shape == (256, 3, 7, 7)
    assert state["blocks.group_2.block_1.id_path.w"].shape == (512, 256, 1, 1)
    assert state["blocks.group_4.block_2.res_path.conv_4.w"].shape == (2048, 512, 1, 1)
    assert state["blocks.output.conv.w"].shape == (8192, 2048, 1, 1)


def test_tokenizers_are_frozen():
    for tokenizer in (filled(), PatchCodebook(4, 4)):
        assert isinstance(tokenizer, Tokenizer) and not any(p.requires_grad for p in tokenizer.parameters())
        assert not tokenizer.train().training
    with pytest.raises(NotImplementedError):
        Tokenizer().tokens(torch.zeros(1))


def test_a_state_dict_is_read(tmp_path):
    tokenizer = filled()
    torch.save(tokenizer.state_dict(), tmp_path / "encoder.pth")
    again = DalleTokenizer.load(tmp_path / "encoder.pth")
    x = torch.rand(1, 3, 16, 16)
    assert again.vocabulary == 16 and torch.equal(again(x), tokenizer(x))


@pytest.fixture
def published(tmp_path):
    """A file like the published one: the encoder pickled as a module of classes that the reader does not have."""
    package, encoder, utils = (types.ModuleType(name) for name in ("dall_e", "dall_e.encoder", "dall_e.utils"))

    class Conv2d(nn.Module):
        __module__ = "dall_e.utils"

        def __init__(self, w, b):
            super().__init__()
            self.n_in, self.kw, self.device = w.shape[1], w.shape[2], torch.device("cpu")
            self.w, self.b = nn.Parameter(w, requires_grad=False), nn.Parameter(b, requires_grad=False)

    class EncoderBlock(nn.Module):
        __module__ = "dall_e.encoder"

    class Encoder(nn.Module):
        __module__ = "dall_e.encoder"

    def rebuilt(module):
        if hasattr(module, "w"):
            return Conv2d(module.w.data, module.b.data)
        if isinstance(module, nn.Sequential):
            return nn.Sequential(dict_of(module))
        if not list(module.children()):
            return module
        made = EncoderBlock() if hasattr(module, "res_path") else Encoder()
        for name, child in module.named_children():
            made.add_module(name, rebuilt(child))
        return made

    def dict_of(module):
        return OrderedDict((name, rebuilt(child)) for name, child in module.named_children())

    for some in (Conv2d, EncoderBlock, Encoder):
        some.__qualname__ = some.__name__
    encoder.Encoder, encoder.EncoderBlock, utils.Conv2d = Encoder, EncoderBlock, Conv2d
    modules = {"dall_e": package, "dall_e.encoder": encoder, "dall_e.utils": utils}
    sys.modules.update(modules)
    try:
        tokenizer = filled()
        torch.save(rebuilt(tokenizer), tmp_path / "encoder.pkl")
    finally:
        for name in modules:
            del sys.modules[name]
    return tokenizer, tmp_path


def test_the_published_module_is_read_without_its_classes(published):
    tokenizer, folder = published
    again = DalleTokenizer.load(folder / "encoder.pkl")
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(again(x), tokenizer(x))
    assert "dall_e" not in sys.modules


class Bomb:
    def __reduce__(self):
        return (print, ("ran",))


def test_a_pickle_that_asks_for_more_is_refused(tmp_path, capsys):
    torch.save({"state": Bomb(), "w": torch.zeros(1)}, tmp_path / "bomb.pkl")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.pkl", "plain.pkl"):
        with pytest.raises(UsageError, match="refused"):
            read_module_state(tmp_path / name)
    assert capsys.readouterr().out == ""


def test_files_that_are_no_encoder(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        DalleTokenizer.load(tmp_path / "nothing.pkl")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UsageError, match="is no DALL-E encoder"):
        DalleTokenizer.load(tmp_path / "other.pth")
    state = filled().state_dict()
    del state["blocks.group_3.block_1.id_path.w"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(UsageError, match="is no DALL-E encoder: Missing"):
        DalleTokenizer.load(tmp_path / "part.pth")
