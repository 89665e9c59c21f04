"""A trained scene: Gaussians, their fields, the cameras, and how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor

from featuresplat import raster, registry
from featuresplat.config import TrainConfig, load_config, to_dict
from featuresplat.errors import FeaturesplatError
from featuresplat.exposure import predict, transform
from featuresplat.io.atomic import atomic_write_text
from featuresplat.io.formats import ending_of
from featuresplat.io.scene_file import is_scene_file, read_scene_file, write_scene_file
from featuresplat.io.scene_folder import read_scene_folder, write_scene_folder
from featuresplat.types import Cameras, FeatureField, Gaussians, RasterMeta, RenderOutput

if TYPE_CHECKING:
    from featuresplat.prompts.edits import Edit
    from featuresplat.prompts.selection import Selection

CONFIG = "config.yaml"
PER_GAUSSIAN = "gaussian."


@dataclass
class Scene:
    """What training makes and everything else works on. All coordinates are the input data's own.

    Attributes:
        gaussians: N Gaussians.
        cameras: every camera of the data, at the size that training used.
        fields: feature fields by name; the last one is the default where none is named.
        mode: name of the mode that made it.
        mode_state: further tensors by name; ``exposure.delta`` [M, 3, 4] when exposures were fitted. Those whose
            name begins with ``gaussian.`` have one row per Gaussian.
        units: ``center`` and ``scale`` of the training frame; the near plane is 0.01 / scale.
        config: how it was trained, or None.
        info: plain values: ``source`` (path of the data), ``split`` {train, test: names}, ``background``,
            ``training`` {seconds, steps, peak_memory_bytes}.
    """

    gaussians: Gaussians
    cameras: Cameras
    fields: dict[str, FeatureField] = field(default_factory=dict)
    mode: str = "static"
    mode_state: dict[str, Tensor] = field(default_factory=dict)
    units: dict[str, Any] = field(default_factory=lambda: {"center": [0.0, 0.0, 0.0], "scale": 1.0})
    config: TrainConfig | None = None
    info: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def load(folder: str | Path) -> Scene:
        """Read a run folder, or a file of Gaussians, which has no cameras; fields come along where they lie beside.

        Raises:
            FeaturesplatError: missing, empty, damaged, or written by a newer version.
        """
        if is_scene_file(folder) and not Path(folder).is_dir():
            return _from_file(folder)
        read = read_scene_folder(folder)
        path = Path(folder) / CONFIG
        config = load_config(path) if path.is_file() else None
        return Scene(
            gaussians=read.gaussians,
            cameras=read.cameras,
            fields=read.fields,
            mode=read.mode,
            mode_state=read.mode_state or {},
            units=read.units,
            config=config,
            info=read.info,
        )

    def save(self, folder: str | Path) -> Path:
        """Write the run folder's scene.json and all that it names, and config.yaml. Returns scene.json's path.

        A path that ends in .ply, .compressed.ply, .splat or .spz becomes such a file instead: see docs/formats.md.
        """
        if is_scene_file(folder):
            module = registry.load("modes", self.mode)
            full = ending_of(folder) == ".ply" and hasattr(module, "columns")
            comments, extra = module.columns(self, folder) if full else ((), None)
            write_scene_file(folder, self.gaussians, self.fields, comments=comments, extra=extra)
            return Path(folder)
        if self.config is not None:
            text = yaml.safe_dump(to_dict(self.config), sort_keys=False)
            atomic_write_text(Path(folder) / CONFIG, text)
        return write_scene_folder(
            folder,
            self.gaussians,
            self.cameras,
            self.fields,
            self.mode,
            self.mode_state or None,
            self.info,
            units=self.units,
        )

    def to(self, device: str | torch.device) -> Scene:
        """The same scene with its Gaussians, fields and state on ``device``; the cameras stay where they are."""
        fields = _over_shared_codes(self.fields, lambda codes: codes.to(device), lambda f: f.to(device))
        state = {k: v.to(device) for k, v in self.mode_state.items()}
        return Scene(
            self.gaussians.to(device), self.cameras, fields, self.mode, state, self.units, self.config, self.info
        )

    def field(self, name: str | None = None) -> tuple[str, FeatureField]:
        """A field and its name; None takes the one added last.

        Raises:
            FeaturesplatError: no field of that name, or none at all.
        """
        if not self.fields:
            raise FeaturesplatError(
                "this scene has no feature field", "Add one: featuresplat distill RUN --teacher offline (or clip, sam)."
            )
        if name is None:
            name = next(reversed(self.fields))
        if name not in self.fields:
            known = ", ".join(self.fields)
            raise FeaturesplatError(f"field: this scene has none called '{name}'", f"Its fields: {known}.")
        return name, self.fields[name]

    def rows(self, index: Tensor | slice) -> Scene:
        """The scene of some Gaussians only, at a boolean mask, an index tensor or a slice; fields follow."""
        fields = _over_shared_codes(self.fields, lambda codes: codes[index], lambda f: f[index])
        state = {k: v[index] if k.startswith(PER_GAUSSIAN) else v for k, v in self.mode_state.items()}
        return replace(self, gaussians=self.gaussians[index], fields=fields, mode_state=state)

    def query(self, phrases: str | Sequence[str], field: str | None = None) -> Tensor:
        """Scores in 0..1 of the Gaussians: [N] of a phrase, [P, N] of several; see `featuresplat.prompts.text`.

        Raises:
            FeaturesplatError: an empty phrase, no field that answers text, a phrase it does not know.
        """
        from featuresplat.prompts import text

        scores = text.score(self, phrases, field)
        return scores[0] if isinstance(phrases, str) else scores

    def select(self, chosen: Tensor | Selection) -> Scene:
        """The scene of the chosen Gaussians only: a bool mask [N], or a `featuresplat.prompts` selection."""
        return self.rows(chosen if isinstance(chosen, torch.Tensor) else chosen.mask)

    def edit(self, edits: Edit | Sequence[Edit]) -> Scene:
        """The scene after edits, one after the other; this one stays as it is. See `featuresplat.prompts.edits`."""
        from featuresplat.prompts.edits import Edit, apply_all

        return apply_all(self, [edits] if isinstance(edits, Edit) else list(edits))

    @staticmethod
    def cat(scenes: Sequence[Scene]) -> Scene:
        """All Gaussians of several scenes in one; everything else is the first one's.

        Fields are the first one's too: where another scene has no field of that name in the same space (one teacher,
        one decoder), its Gaussians get codes and confidence of 0. Likewise with per-Gaussian tensors of the mode.
        """
        first = scenes[0]
        fields = {}
        for name, field_ in first.fields.items():
            parts = [_field_rows(s, name, field_) for s in scenes]
            confidence = None
            if field_.confidence is not None:
                known = [torch.zeros(len(p)) if p.confidence is None else p.confidence for p in parts]
                confidence = torch.cat([c.to(field_.codes.device) for c in known])
            fields[name] = replace(field_, codes=torch.cat([p.codes for p in parts]), confidence=confidence)
        module = registry.load("modes", first.mode)
        if hasattr(module, "joined"):
            scenes = module.joined(scenes)
        state = dict(scenes[0].mode_state)
        rows = {k: v for s in reversed(scenes) if s.mode == first.mode for k, v in s.mode_state.items()}
        for key, like in ((k, v) for k, v in rows.items() if k.startswith(PER_GAUSSIAN)):
            values = [s.mode_state.get(key) for s in scenes]
            state[key] = torch.cat(
                [like.new_zeros(len(s.gaussians), *like.shape[1:]) if v is None else v
                 for s, v in zip(scenes, values, strict=True)]
            )  # fmt: skip
        return replace(first, gaussians=Gaussians.cat([s.gaussians for s in scenes]), fields=fields, mode_state=state)

    def names(self, part: str) -> list[str]:
        """Names of the ``train`` or ``test`` images, in the cameras' order."""
        wanted = set(self.info.get("split", {}).get(part, ()))
        return [name for name in self.cameras.names if name in wanted]

    def part(self, part: str) -> Cameras:
        """The ``train`` or ``test`` cameras."""
        wanted = set(self.names(part))
        return self.cameras[[i for i, name in enumerate(self.cameras.names) if name in wanted]]

    def at(self, time: float | None = None) -> Gaussians:
        """The Gaussians at a time in 0..1 (None: as stored), in the data's own frame."""
        module = registry.load("modes", self.mode)
        return module.at(self, time) if hasattr(module, "at") else self.gaussians

    def render(
        self,
        cameras: Cameras,
        *,
        features: str | Tensor | None = None,
        exposure: bool = False,
        backgrounds: Tensor | None = None,
        light: Any = None,
        linear: bool = False,
        backend: str | None = None,
    ) -> RenderOutput:
        """Render cameras of one size, each at its own time; no gradients.

        Args:
            cameras: C cameras in the data's frame.
            features: name of a field to splat along: ``out.features`` are its codes (see `FeatureField.decode`); or
                [N, K] values of your own, one row per Gaussian.
            exposure: show colours as a photograph taken from there would (when exposures were fitted), in place of
                the scene's own.
            backgrounds: [3] or [C, 3]; default: what the scene was trained over.
            light: for modes that can be relit; what it may be, the mode says.
            linear: for such modes: colours before the tone curve. Without effect in the others.
            backend: see `featuresplat.rasterize`.

        Raises:
            FeaturesplatError: no field of that name; a light for a scene that cannot be relit.
        """
        if isinstance(features, str):
            self.field(features)
        request = RenderRequest(features, backgrounds, light, backend, linear)
        module = registry.load("modes", self.mode)
        with torch.no_grad():
            if hasattr(module, "render"):
                out = module.render(self, cameras, request)
            elif light is not None:
                hint = "Train it with --config inverse, or 'featuresplat inverse RUN'."
                raise FeaturesplatError(f"light: a scene of mode '{self.mode}' cannot be relit", hint)
            else:
                out = self.splat(cameras, request)
            if exposure and "exposure.delta" in self.mode_state and out.rgb is not None:
                out.rgb = torch.stack([self._exposed(out.rgb[i], cameras[i]) for i in range(len(cameras))])
        return out

    def splat(self, cameras: Cameras, request: RenderRequest) -> RenderOutput:
        """The plain render behind `render`: the Gaussians at each camera's time."""
        if cameras.times is None or not hasattr(registry.load("modes", self.mode), "at"):
            return self._splat(self.gaussians, cameras, request)
        outs = [self._splat(self.at(float(cameras.times[i])), cameras[i], request) for i in range(len(cameras))]
        return outs[0] if len(outs) == 1 else joined(outs)

    def raster_settings(self) -> raster.RasterSettings:
        """The constants that the scene was trained with, in the data's own frame."""
        model = self.config.model if self.config else None
        return raster.RasterSettings(near=0.01 / self.units["scale"], antialiased=bool(model and model.antialiased))

    def _splat(self, g: Gaussians, cameras: Cameras, request: RenderRequest) -> RenderOutput:
        device, backgrounds = g.means.device, request.backgrounds
        if backgrounds is None and any(self.info.get("background", ())):
            backgrounds = torch.tensor(self.info["background"])
        return raster.rasterize(
            g.means,
            g.quats,
            g.scales,
            g.opacities,
            g.sh,
            cameras.viewmats.to(device, torch.float32),
            cameras.Ks.to(device, torch.float32),
            cameras.width,
            cameras.height,
            features=self.values(request.features),
            sh_degree=g.sh_degree,
            backgrounds=None if backgrounds is None else backgrounds.to(device, torch.float32),
            settings=self.raster_settings(),
            backend=request.backend,
        )

    def values(self, features: str | Tensor | None) -> Tensor | None:
        """What `RenderRequest.features` asks to be splatted: [N, K] or None."""
        return self.fields[features].codes if isinstance(features, str) else features

    def _exposed(self, rgb: Tensor, view: Cameras) -> Tensor:
        """Under the photograph's own transform if it was trained on, else under the predicted one."""
        delta, names = self.mode_state["exposure.delta"], self.names("train")
        if view.names[0] and view.names[0] in names:
            return transform(rgb, delta[names.index(view.names[0])])
        return transform(rgb, predict(delta, self.part("train"), view))


@dataclass(frozen=True)
class RenderRequest:
    """What `Scene.render` was asked for beside the cameras; see there."""

    features: str | Tensor | None = None
    backgrounds: Tensor | None = None
    light: Any = None
    backend: str | None = None
    linear: bool = False


def _from_file(path: str | Path) -> Scene:
    loaded, fields = read_scene_file(path)
    scene = Scene(loaded.gaussians, Cameras(torch.zeros(0, 4, 4), torch.zeros(0, 3, 3), [], []), fields)
    for comment in loaded.comments:
        word, _, rest = comment.partition(" ")
        mode, _, told = rest.partition(" ")
        if word == "mode" and mode in registry.names("modes"):
            module = registry.load("modes", mode)
            return module.from_columns(scene, told, loaded.extra, path) if hasattr(module, "from_columns") else scene
    return scene


def _over_shared_codes(fields: dict[str, FeatureField], on_codes, on_field) -> dict[str, FeatureField]:
    """``on_field`` of each; fields that shared a tensor of codes share ``on_codes`` of it."""
    seen: dict[int, Tensor] = {}
    out = {}
    for name, value in fields.items():
        if id(value.codes) not in seen:
            seen[id(value.codes)] = on_codes(value.codes)
        out[name] = replace(on_field(value), codes=seen[id(value.codes)])
    return out


def _field_rows(scene: Scene, name: str, like: FeatureField) -> FeatureField:
    """A scene's field, or one that says nothing where it has none in the space of ``like``."""
    found = scene.fields.get(name)
    if found is not None and found.same_space(like):
        return found
    count = len(scene.gaussians)
    return replace(like, codes=like.codes.new_zeros(count, like.dim), confidence=like.codes.new_zeros(count))


def joined(outs: list[RenderOutput]) -> RenderOutput:
    """Outputs of single cameras as one of many."""

    def cat(name: str, of: list[Any]) -> Any:
        values = [getattr(o, name) for o in of]
        return None if values[0] is None else torch.cat(values)

    metas = [o.meta for o in outs]
    meta = RasterMeta(**{name: cat(name, metas) for name in ("means2d", "radii", "depths", "conics")})
    return RenderOutput(**{name: cat(name, outs) for name in ("rgb", "features", "alpha", "depth")}, meta=meta)
