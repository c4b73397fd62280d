# SPDX-License-Identifier: Apache-2.0
"""Text that somebody else wrote, made safe for HTML and markdown."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, marks that turn the direction of a line, and halves of characters."""


def visible(text: str) -> str:
    """The text without characters that hide or reorder others; keeps its type, so safe text stays marked safe."""
    return text if text.isprintable() else type(text)(UNSEEN.sub("", text))


CODE = re.compile(r"`([^`]+)`")
URL = re.compile(r"(https?://[^\s<>\"']+[^\s<>\"'.,;:)])")


def inline_html(text: str) -> Markup:
    """Escaped text with `code` and addresses made live."""
    pieces = []
    for i, piece in enumerate(CODE.split(visible(text))):
        if i % 2:
            pieces.append(Markup("<code>{}</code>").format(piece))
            continue
        for j, part in enumerate(URL.split(piece)):
            pieces.append(Markup('<a href="{0}">{0}</a>').format(part) if j % 2 else escape(part))
    return Markup("").join(pieces)


def inline_markdown(text: str) -> str:
    """A paragraph as markdown, its `code` kept and everything else literal."""
    pieces = CODE.split(re.sub(r"\s+", " ", text).strip())
    return "".join(f"`{piece}`" if i % 2 else _escaped(piece) for i, piece in enumerate(pieces))


def markdown_text(text: str) -> str:
    """Plain text as markdown that shows it literally, on one line."""
    return _escaped(" ".join(text.split()))


def _escaped(text: str) -> str:
    text = re.sub(r"([\\`*\[\]|#~]|(?<!\w)_|_(?!\w))", r"\\\1", text.replace("&", "&amp;"))
    return text.replace("<", "&lt;").replace(">", "&gt;")
