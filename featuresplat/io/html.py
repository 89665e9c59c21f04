"""Pieces of a report page: pictures inside the file, and what stands around them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import torch
from PIL import Image

from featuresplat.io.colormap import colormap

PICTURE_WIDTH = 480
"""Pictures wider than this are reduced: four stand side by side on the page."""


def data_uri(image: torch.Tensor) -> str:
    """A JPEG data URI of uint8 [H, W, 3]; reduced to :data:`PICTURE_WIDTH`."""
    picture = Image.fromarray(image.numpy())
    if picture.width > PICTURE_WIDTH:
        size = (PICTURE_WIDTH, max(1, round(picture.height * PICTURE_WIDTH / picture.width)))
        picture = picture.resize(size, Image.Resampling.BOX if picture.width > 2 * PICTURE_WIDTH else None)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=84, optimize=True, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def figure(image: torch.Tensor, caption: str, alt: str) -> str:
    """A picture uint8 [H, W, 3] with its caption; both strings are HTML already."""
    height, width = image.shape[:2]
    return (
        f'<figure><img src="{data_uri(image)}" width="{width}" height="{height}" alt="{alt}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def row(title: str, pictures: Sequence[tuple[torch.Tensor, str]], facts: Sequence[str] = ()) -> str:
    """One row of pictures (uint8 [H, W, 3], caption) under a title; the strings are plain text and get escaped."""
    name = escape(title)
    figures = [figure(image, escape(caption), f"{name}: {escape(caption)}") for image, caption in pictures]
    few = " few" if len(figures) < 4 else ""
    spans = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    return (
        f'<article class="view"><header><h3>{name}</h3>{spans}</header>'
        f'<div class="pictures{few}">{"".join(figures)}</div></article>'
    )


def note(text: str) -> str:
    """A paragraph in small; plain text."""
    return f'<p class="note">{escape(text)}</p>'


def ramp() -> str:
    """The colours of `featuresplat.io.colormap` as a bar, low to high."""
    stops = colormap(torch.linspace(0, 1, 9))
    colors = ", ".join("rgb({},{},{})".format(*stop.tolist()) for stop in stops)
    return f'<span class="ramp" style="background:linear-gradient(90deg, {colors})"></span>'
