"""The nouns: Gaussians, Cameras, PointCloud, RenderOutput, TextTable, FeatureField.

Sizes: N Gaussians, C cameras, H and W pixels, K spherical-harmonic bases, D stored and F teacher channels.
Frames: ``means`` live in the world frame of the input data; ``viewmats`` map world to camera, OpenCV axes
(x right, y down, z forward); pixel centres are at +0.5.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from featuresplat.decoders import Decoder
from featuresplat.errors import FeaturesplatError

SH_C0 = 0.28209479177387814
"""The constant spherical-harmonic basis, 1 / (2 sqrt(pi))."""


@dataclass
class Gaussians:
    """N anisotropic 3D Gaussians; every stored value says its space.

    Attributes:
        means: [N, 3] centres, world frame.
        quats: [N, 4] rotations, wxyz, normalised on use.
        log_scales: [N, 3] natural logarithm of the standard deviations along the rotated axes.
        logit_opacities: [N] inverse sigmoid of the opacity.
        sh0: [N, 1, 3] constant spherical-harmonic coefficient of the colour.
        shN: [N, K-1, 3] the higher coefficients, K = (degree + 1)^2; may have zero rows.
    """

    means: Tensor
    quats: Tensor
    log_scales: Tensor
    logit_opacities: Tensor
    sh0: Tensor
    shN: Tensor

    def __post_init__(self) -> None:
        n = len(self.means)
        rows = self.shN.shape[1] if self.shN.ndim == 3 else -1
        want = {
            "means": (n, 3),
            "quats": (n, 4),
            "log_scales": (n, 3),
            "logit_opacities": (n,),
            "sh0": (n, 1, 3),
        }
        want["shN"] = (n, rows, 3)
        for name, shape in want.items():
            got = tuple(getattr(self, name).shape)
            if got != shape:
                raise FeaturesplatError(f"{name}: expected {list(shape)}, got {got}", "Give every tensor the same N.")
        if rows + 1 not in (1, 4, 9, 16, 25):
            raise FeaturesplatError(f"shN: expected 0, 3, 8, 15 or 24 rows, got {rows}", "Degrees 0 to 4 are known.")

    def __len__(self) -> int:
        return len(self.means)

    @property
    def scales(self) -> Tensor:
        """[N, 3] standard deviations, world units."""
        return self.log_scales.exp()

    @property
    def opacities(self) -> Tensor:
        """[N] in 0..1."""
        return self.logit_opacities.sigmoid()

    @property
    def sh(self) -> Tensor:
        """[N, K, 3] all spherical-harmonic coefficients."""
        return torch.cat([self.sh0, self.shN], dim=1)

    @property
    def sh_degree(self) -> int:
        return round((self.shN.shape[1] + 1) ** 0.5) - 1

    @property
    def colors(self) -> Tensor:
        """[N, 3] the view-independent colour, 0.5 + C0 sh0, not clamped."""
        return 0.5 + SH_C0 * self.sh0[:, 0]

    def tensors(self) -> dict[str, Tensor]:
        """The six stored tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def map(self, fn) -> Gaussians:
        """A copy with ``fn`` applied to each stored tensor."""
        return Gaussians(**{k: fn(v) for k, v in self.tensors().items()})

    def __getitem__(self, index: Tensor | slice) -> Gaussians:
        """The Gaussians at a boolean mask, an index tensor or a slice."""
        return self.map(lambda t: t[index])

    def to(self, *args, **kwargs) -> Gaussians:
        return self.map(lambda t: t.to(*args, **kwargs))

    def detach(self) -> Gaussians:
        return self.map(lambda t: t.detach())

    @staticmethod
    def cat(parts: Sequence[Gaussians]) -> Gaussians:
        """Concatenate; lower spherical-harmonic degrees are padded with zeros to the highest."""
        rows = max(p.shN.shape[1] for p in parts)
        padded = [
            replace(p, shN=torch.cat([p.shN, p.shN.new_zeros(len(p), rows - p.shN.shape[1], 3)], dim=1)) for p in parts
        ]
        return Gaussians(**{f.name: torch.cat([getattr(p, f.name) for p in padded]) for f in fields(Gaussians)})


@dataclass
class Cameras:
    """C pinhole cameras.

    Attributes:
        viewmats: [C, 4, 4] world-to-camera, OpenCV axes.
        Ks: [C, 3, 3] intrinsics in pixels, pixel centres at +0.5.
        widths, heights: C integers each; a single integer is repeated.
        times: [C] in 0..1 or None.
        names: C image names, e.g. ``IMG_01.jpg``; empty strings when there is no photograph.
    """

    viewmats: Tensor
    Ks: Tensor
    widths: Sequence[int] | int
    heights: Sequence[int] | int
    times: Tensor | None = None
    names: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        c = len(self.viewmats)
        if tuple(self.viewmats.shape) != (c, 4, 4) or tuple(self.Ks.shape) != (c, 3, 3):
            raise FeaturesplatError(
                f"cameras: expected viewmats [C, 4, 4] and Ks [C, 3, 3], got {tuple(self.viewmats.shape)} and "
                f"{tuple(self.Ks.shape)}",
                "Give one matrix of each per camera.",
            )
        self.widths = (self.widths,) * c if isinstance(self.widths, int) else tuple(int(w) for w in self.widths)
        self.heights = (self.heights,) * c if isinstance(self.heights, int) else tuple(int(h) for h in self.heights)
        self.names = tuple(self.names) or ("",) * c
        for what, values in (("widths", self.widths), ("heights", self.heights), ("names", self.names)):
            if len(values) != c:
                raise FeaturesplatError(f"cameras: {c} viewmats but {len(values)} {what}", "Give one per camera.")

    def __len__(self) -> int:
        return len(self.viewmats)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Cameras:
        """A sub-batch; an integer gives a batch of one."""
        if isinstance(index, int):
            index = [range(len(self))[index]]
        elif isinstance(index, slice):
            index = list(range(len(self)))[index]
        elif isinstance(index, Tensor):
            index = index.nonzero()[:, 0].tolist() if index.dtype == torch.bool else index.tolist()
        rows = list(index)
        return Cameras(
            self.viewmats[rows],
            self.Ks[rows],
            [self.widths[i] for i in rows],  # pyright: ignore[reportIndexIssue]
            [self.heights[i] for i in rows],  # pyright: ignore[reportIndexIssue]
            None if self.times is None else self.times[rows],
            [self.names[i] for i in rows],
        )

    @property
    def width(self) -> int:
        """The width all cameras share; an error when they differ (index one camera first)."""
        return _shared("width", self.widths)

    @property
    def height(self) -> int:
        """The height all cameras share; an error when they differ (index one camera first)."""
        return _shared("height", self.heights)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """C pairs (width, height)."""
        return list(zip(self.widths, self.heights, strict=True))  # pyright: ignore

    @property
    def c2w(self) -> Tensor:
        """[C, 4, 4] camera-to-world."""
        return torch.linalg.inv(self.viewmats)

    @property
    def positions(self) -> Tensor:
        """[C, 3] camera centres, world frame."""
        R, t = self.viewmats[:, :3, :3], self.viewmats[:, :3, 3]
        return -(R.transpose(1, 2) @ t[..., None])[..., 0]

    def to(self, *args, **kwargs) -> Cameras:
        times = None if self.times is None else self.times.to(*args, **kwargs)
        return replace(self, viewmats=self.viewmats.to(*args, **kwargs), Ks=self.Ks.to(*args, **kwargs), times=times)

    def resized(self, widths: Sequence[int] | int, heights: Sequence[int] | int) -> Cameras:
        """The same cameras looking at images of another size (intrinsics scaled per axis)."""
        out = replace(self, widths=widths, heights=heights)
        sx = [new / old for new, old in zip(out.widths, self.widths, strict=True)]  # pyright: ignore
        sy = [new / old for new, old in zip(out.heights, self.heights, strict=True)]  # pyright: ignore
        rows = torch.tensor([sx, sy, [1.0] * len(sx)], dtype=self.Ks.dtype, device=self.Ks.device).T  # [C, 3]
        return replace(out, Ks=self.Ks * rows[:, :, None])


def _shared(what: str, values) -> int:
    if len(set(values)) != 1:
        raise FeaturesplatError(
            f"cameras: the {what} differs between cameras ({sorted(set(values))[:4]})",
            "Take one camera, cameras[i], or group them by size.",
        )
    return values[0]


@dataclass
class PointCloud:
    """Coloured start points: ``xyz`` [M, 3] world frame, ``rgb`` [M, 3] in 0..1."""

    xyz: Tensor
    rgb: Tensor

    def __len__(self) -> int:
        return len(self.xyz)


@dataclass
class RasterMeta:
    """What the rasterizer knows about each Gaussian in each camera.

    Attributes:
        means2d: [C, N, 2] projected centres in pixels.
        radii: [C, N, 2] int32 half extents of the bounding box in pixels, 0 = not drawn.
        depths: [C, N] camera z.
        conics: [C, N, 3] upper triangle (xx, xy, yy) of the inverse 2D covariance.
        means2d_grad: [C, N, 2] filled in by backward when ``absgrad`` was asked for: the loss gradient.
        means2d_absgrad: [C, N, 2] likewise: the sum over pixels of the absolute values of its terms.
    """

    means2d: Tensor
    radii: Tensor
    depths: Tensor
    conics: Tensor
    means2d_grad: Tensor | None = None
    means2d_absgrad: Tensor | None = None


@dataclass
class RenderOutput:
    """What one call of the rasterizer gives.

    Attributes:
        rgb: [C, H, W, 3] over the background, or None when no colours were given.
        features: [C, H, W, D] over zero, or None when no features were given.
        alpha: [C, H, W, 1] accumulated opacity.
        depth: [C, H, W, 1] expected camera z, sum(w z) / sum(w); 0 where alpha is 0.
        meta: per-Gaussian by-products.
    """

    rgb: Tensor | None
    features: Tensor | None
    alpha: Tensor
    depth: Tensor
    meta: RasterMeta


@dataclass
class TextTable:
    """Phrases that a field can answer by itself: ``vectors`` [P, F], row p is ``phrases[p]`` in the teacher's space."""

    phrases: tuple[str, ...]
    vectors: Tensor

    def __post_init__(self) -> None:
        self.phrases = tuple(self.phrases)
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.phrases):
            raise FeaturesplatError(
                f"text: {len(self.phrases)} phrases, but vectors {list(self.vectors.shape)}",
                "Give one row of F numbers per phrase.",
            )


@dataclass
class FeatureField:
    """Features riding on the Gaussians: what is splatted are the codes; the teacher's space is `decode` of them.

    Attributes:
        codes: [N, D] what is stored and splatted.
        teacher: name of the teacher that the codes were distilled from, or "" when unknown.
        decoder: D to the teacher's F channels; None when the codes are in the teacher's space themselves.
        confidence: [N] how much was seen of each Gaussian: its summed blending weight in pixels; 0 = the code is a
            guess. None when unknown.
        text: phrases with their vectors, of teachers that are a table of phrases.
        info: plain values. ``teacher``: the teacher's settings, so that text can be asked without the photographs.
    """

    codes: Tensor
    teacher: str = ""
    decoder: Decoder | None = None
    confidence: Tensor | None = None
    text: TextTable | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.codes)
        if self.codes.ndim != 2:
            raise FeaturesplatError(f"codes: expected [N, D], got {list(self.codes.shape)}", "Give one row each.")
        if self.decoder is not None and self.decoder.dim != self.dim:
            raise FeaturesplatError(
                f"decoder: takes {self.decoder.dim} channels, but the codes have {self.dim}",
                "Give the decoder that was trained with these codes.",
            )
        if self.confidence is not None and tuple(self.confidence.shape) != (n,):
            raise FeaturesplatError(
                f"confidence: expected [{n}], got {list(self.confidence.shape)}", "Give one number per Gaussian."
            )
        if self.text is not None and self.text.vectors.shape[1] != self.out_dim:
            raise FeaturesplatError(
                f"text: its vectors have {self.text.vectors.shape[1]} channels, the field has {self.out_dim}",
                "Give the table of the teacher that the field was distilled from.",
            )

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def dim(self) -> int:
        """D, the number of stored channels."""
        return self.codes.shape[1]

    @property
    def out_dim(self) -> int:
        """F, the number of channels in the teacher's space."""
        return self.dim if self.decoder is None else self.decoder.out_dim

    def decode(self, x: Tensor) -> Tensor:
        """Codes [..., D], per Gaussian or rendered, to the teacher's space [..., F]."""
        return x if self.decoder is None else self.decoder(x)

    def project(self, vectors: Tensor) -> Tensor | None:
        """[P, F] in the teacher's space to [P, D], so that ``codes @ projected.T == decode(codes) @ vectors.T``.

        This commutes with blending: P channels can be splatted in place of D. None where the decoder is not linear.
        """
        if self.decoder is None:
            return vectors
        matrix = self.decoder.matrix
        return None if matrix is None else vectors @ matrix

    def __getitem__(self, index: Tensor | slice) -> FeatureField:
        """The field of the Gaussians at a boolean mask, an index tensor or a slice."""
        confidence = None if self.confidence is None else self.confidence[index]
        return replace(self, codes=self.codes[index], confidence=confidence)

    def to(self, *args, **kwargs) -> FeatureField:
        """A copy on another device; the decoder and the text go along."""

        def moved(value):
            return None if value is None else value.to(*args, **kwargs)

        decoder = None if self.decoder is None else copy.deepcopy(self.decoder).to(*args, **kwargs)
        text = None if self.text is None else TextTable(self.text.phrases, self.text.vectors.to(*args, **kwargs))
        return replace(
            self, codes=moved(self.codes), decoder=decoder, confidence=moved(self.confidence), text=text
        )  # fmt: skip

    def same_space(self, other: FeatureField) -> bool:
        """Whether codes of both mean the same: one teacher, one decoder."""
        if (self.teacher, self.dim, self.out_dim) != (other.teacher, other.dim, other.out_dim):
            return False
        mine, theirs = self.decoder, other.decoder
        if mine is theirs or mine is None or theirs is None:
            return mine is theirs
        if mine.settings() != theirs.settings():
            return False
        states = mine.state_dict(), theirs.state_dict()
        return all(torch.equal(states[0][k].cpu(), states[1][k].cpu()) for k in states[0])
