"""The whole configuration as dataclasses, and the strict reading of sparse YAML presets.

The string under each field is its help on the command line. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from featuresplat.config_dynamic import DynamicConfig, PriorsConfig
from featuresplat.config_fields import FieldConfig, TeacherConfig
from featuresplat.config_inverse import InverseConfig
from featuresplat.errors import FeaturesplatError


@dataclass
class DataConfig:
    """Which images are read, and how."""

    kind: str = "auto"
    """Input layout; 'auto' detects it."""
    downscale: int = 0
    """Divide the image size by this; 0 chooses the smallest factor whose images fit `max_pixels`."""
    max_pixels: int = 1_000_000
    """Largest image, in pixels, that automatic downscaling leaves alone."""
    split: Literal["auto", "every", "all"] = "auto"
    """'auto': the data's own split, else a test.txt beside the images, else every `test_every`-th; 'every': every
    `test_every`-th whatever the data says; 'all': train on everything."""
    test_every: int = 8
    """Hold out every n-th image, by name, when the data brings no split of its own."""
    background: Literal["white", "black", "gray"] = "white"
    """What transparent images are laid over."""
    masks: Literal["auto", "none"] = "auto"
    """'auto' leaves out pixels that a mask beside the image marks as black; 'none' ignores masks."""
    film: bool = False
    """The frames of a video, or plain photographs in the order of their names, follow each other in time; what moves
    in them is left out when poses are looked for."""
    depths: Path | None = None
    """Folder of depth maps for supervision: NAME.npy in scene units, or 16-bit NAME.png in thousandths."""


@dataclass
class ModelConfig:
    """The Gaussians."""

    sh_degree: int = 3
    """Highest spherical-harmonic degree, 0 to 4."""
    sh_interval: float = 0.03
    """Raise the degree by one each time this share of the steps has passed."""
    init: Literal["auto", "points", "random"] = "auto"
    """Start from the data's points, or at random in front of the cameras; 'auto' takes the points, or finds some in
    the photographs where the data brings none."""
    init_count: int = 20_000
    """How many Gaussians a random start has."""
    init_opacity: float = 0.3
    """Opacity at the start."""
    init_scale: float = 1.0
    """Initial standard deviation as a multiple of the mean distance to the three nearest neighbours."""
    max_scale: float = 1.0
    """Greatest standard deviation as a share of the distance to the nearest training camera: what reaches around a
    camera explains its image from too near and is haze in every other view. 0 sets no limit."""
    budget: int = 100_000
    """The number of Gaussians that densification may reach."""
    antialiased: bool = False
    """Mip-Splatting's opacity compensation."""


@dataclass
class OptimConfig:
    """Adam's learning rates. Positions are in units of the scene's extent."""

    means_lr: float = 1.6e-4
    """Positions, at the start."""
    means_lr_final: float = 1.6e-6
    """Positions, at the end (exponential in between)."""
    scales_lr: float = 5e-3
    """Logarithms of scales."""
    quats_lr: float = 1e-3
    """Rotations."""
    opacities_lr: float = 5e-2
    """Logits of opacities."""
    sh0_lr: float = 2.5e-3
    """Base colours."""
    shN_lr: float = 1.25e-4
    """Higher spherical harmonics."""
    batch: int = 1
    """Images per step."""


@dataclass
class LossConfig:
    """Weights of the loss terms."""

    dssim: float = 0.2
    """Share of D-SSIM; the rest is L1."""
    opacity: float = 0.0
    """Mean opacity, pushes the superfluous to vanish (MCMC)."""
    scale: float = 0.0
    """Mean scale in units of the scene's extent, keeps Gaussians small (MCMC)."""
    depth: float = 0.0
    """L1 of inverse depth against given depth maps."""
    random_background: bool = False
    """Lay every training render and transparent image over a random colour."""


@dataclass
class DensifyConfig:
    """Where Gaussians are added and removed."""

    strategy: Literal["mcmc", "classic", "none"] = "mcmc"
    """'mcmc' relocates the dead and grows to the budget; 'classic' clones, splits and prunes."""
    start: float = 0.05
    """Share of the steps after which it begins."""
    stop: float = 0.8
    """Share of the steps after which it ends."""
    every: int = 100
    """Steps between two rounds."""
    min_opacity: float = 0.005
    """Gaussians below are dead (mcmc) or pruned (classic)."""
    growth: float = 0.05
    """mcmc: how much more Gaussians each round brings at least, as a share; more where the budget would not be
    reached by the middle of the rounds."""
    noise: float = 5e5
    """mcmc: strength of the exploration noise on positions."""
    grad_threshold: float = 2e-4
    """classic: 2D positional gradient, in normalised device units, above which a Gaussian is cloned or split."""
    split_scale: float = 0.01
    """classic: Gaussians larger than this share of the scene's extent are split, smaller ones cloned."""
    reset_every: int = 3000
    """classic: steps between two resets of the opacities; 0 never resets."""


@dataclass
class ExposureConfig:
    """A colour transform per image, for photographs whose exposure, white balance or light changes."""

    enabled: bool = False
    """Fit an affine colour transform per training image. A held-out view gets the one that its pose predicts from
    its neighbours; no pixel of it is looked at."""
    lr: float = 5e-4
    """Learning rate at the start; it falls to a hundredth."""
    regularise: float = 0.01
    """Pull of the mean transform to the identity."""


@dataclass
class PoseConfig:
    """Refinement of the cameras' poses."""

    enabled: bool = False
    """Refine the poses of training images."""
    lr: float = 1e-4
    """Learning rate at the start, radians and scene extents; it falls to a hundredth."""


@dataclass
class TrainConfig:
    """Everything that `featuresplat train` can be told."""

    config: str = "fast"
    """Preset (draft, fast, quality; with a field clip, lseg, sam, offline; dynamic, inverse; demo), or a YAML file with
    values that differ from the defaults."""
    out: Path | None = None
    """Run folder; default runs/NAME of the scene."""
    mode: str = "static"
    """What a scene is made of over time and light: static, dynamic, inverse; for comparison hexplane, joint."""
    steps: int = 7000
    """Optimisation steps."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """'auto', 'cpu', 'cuda' or 'cuda:N'."""
    backend: str | None = None
    """Rasterizer backend; default: the fastest for the device."""
    resume: bool = False
    """Go on from the last checkpoint in the run folder."""
    overwrite: bool = False
    """Start anew in a run folder that already holds a run."""
    coarse_to_fine: tuple[int, ...] = ()
    """Image reductions to begin with, e.g. `4 2`: each takes an equal share of the first 30 % of the steps."""
    eval_views: int = 4
    """Test views looked at while training."""
    eval_every: int = 1000
    """Steps between two looks at the test views."""
    checkpoint_every: int = 2000
    """Steps between two checkpoints."""
    report: bool = True
    """Write report.html at the end."""
    tensorboard: bool = False
    """Write TensorBoard events too (needs the tensorboard package)."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    densify: DensifyConfig = field(default_factory=DensifyConfig)
    exposure: ExposureConfig = field(default_factory=ExposureConfig)
    pose: PoseConfig = field(default_factory=PoseConfig)
    priors: PriorsConfig = field(default_factory=PriorsConfig)
    dynamic: DynamicConfig = field(default_factory=DynamicConfig)
    inverse: InverseConfig = field(default_factory=InverseConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    field: FieldConfig = field(default_factory=FieldConfig)  # last: it hides dataclasses.field in this body


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(p.name[:-5] for p in _presets().iterdir() if p.name.endswith(".yaml"))


def load_config(name_or_path: str | Path) -> TrainConfig:
    """A TrainConfig from a preset's name or a YAML file of values that differ from the defaults.

    Raises:
        FeaturesplatError: no such preset or file, unreadable YAML, an unknown key or a value of the wrong type.
    """
    text, origin = _read(str(name_or_path))
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise FeaturesplatError(f"{origin}: not valid YAML ({yaml_trouble(error)})", "Mend that line.") from None
    if values is None:
        values = {}
    config = from_dict(TrainConfig, values, origin)
    if "config" not in values:
        config.config = str(name_or_path)
    return config


def yaml_trouble(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML text, and in which line, in a few words."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    said = problem or str(error).splitlines()[0]
    return said if mark is None else f"line {mark.line + 1}: {said}"


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values, as written to config.yaml."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Path):
            return str(value)
        return [plain(v) for v in value] if isinstance(value, tuple) else value

    return plain(config)


def from_dict(cls: type, values: Any, origin: str = "config") -> Any:
    """Build the dataclass ``cls`` from nested plain values; missing keys keep their defaults.

    Raises:
        FeaturesplatError: an unknown key (the hint names the nearest one) or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise FeaturesplatError(
            f"{origin}: expected keys and values, got {type(values).__name__}", "Write `key: value`."
        )
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    out = {}
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Perhaps you meant '{close[0]}'." if close else f"Known: {', '.join(sorted(known))}."
            raise FeaturesplatError(f"{origin}: unknown key '{key}'", hint)
        where = f"{origin}: {key}"
        out[key] = from_dict(hints[key], value, where) if dataclasses.is_dataclass(hints[key]) else _cast(
            value, hints[key], where
        )  # fmt: skip
    return cls(**out)


def _cast(value: Any, kind: Any, where: str) -> Any:
    """``value`` as ``kind``; integers pass for floats, lists for tuples, strings for paths."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _cast(value, next(a for a in args if a is not type(None)), where)
    if origin is Literal:
        if value in args:
            return value
        raise FeaturesplatError(f"{where}: got {value!r}", f"Use one of {', '.join(map(repr, args))}.")
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_cast(v, args[0], where) for v in value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    # YAML 1.1 reads 1e-4 as text; a number without a dot is still a number to whoever wrote it.
    if kind is float and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    if isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    name = getattr(kind, "__name__", str(kind))
    raise FeaturesplatError(f"{where}: expected {name}, got {value!r}", "Give a value of that type.")


def _presets():
    """The folder of presets: inside the installed package, or beside it in a checkout."""
    inside = resources.files("featuresplat") / "configs"
    return inside if inside.is_dir() else Path(__file__).resolve().parent.parent / "configs"


def _read(name: str) -> tuple[str, str]:
    if name.endswith((".yaml", ".yml")) or "/" in name or "\\" in name:
        path = Path(name)
        if not path.is_file():
            raise FeaturesplatError(f"{name}: no such configuration file", f"Presets: {', '.join(preset_names())}.")
        try:
            return path.read_text(encoding="utf-8"), name
        except (OSError, UnicodeDecodeError) as error:
            raise FeaturesplatError(f"{name}: cannot be read ({error})", "Give a YAML file of text.") from None
    if name not in preset_names():
        close = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"Perhaps you meant '{close[0]}'. " if close else ""
        raise FeaturesplatError(f"config: there is no preset '{name}'", f"{hint}Presets: {', '.join(preset_names())}.")
    return (_presets() / f"{name}.yaml").read_text(encoding="utf-8"), name
