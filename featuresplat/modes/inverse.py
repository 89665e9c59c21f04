"""A scene of materials under a light: progressive radiance distillation.

The photograph is I = a I_phy + (1 - a) I_raw: a physical model, shaded per pixel from splatted parameters, and the
radiance field that explains whatever it cannot. The progress a, a number per Gaussian, begins near 0, so that the
radiance carries the image while the physical model is far off, and rises where that model comes to agree; where it
cannot (light paths that it does not know), a stays low and nothing leaks into the materials. Where I_raw has converged,
the stationary progress is clip(1 - |I_phy - I| / (2 mask_weight), 0, 1).

Stages: radiance; specular (mirrors first: they show the light); diffuse (every Gaussian begins as the material that
explains it best; shadows and reflected light baked); joint (progress slower; materials looked for twice more, as the
light becomes known). Gaussians are flat: their normal is the shortest axis. Where the data's points lie on a surface
they are laid all over it, and from the specular stage on they hold still: what light reaches whom was found for them.
At the end the Gaussians of the run that it started from take the place of I_raw, and a settles beside them
(`_inverse_radiance`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from featuresplat import modes, raster
from featuresplat.modes import _inverse_guess as guess
from featuresplat.modes import _inverse_looks as looks
from featuresplat.modes import _inverse_pixels as px
from featuresplat.modes import _inverse_solve as solve
from featuresplat.modes import static
from featuresplat.modes._inverse_input import check_photographs
from featuresplat.modes._inverse_light import DAMPED, EVERY, FittedLight
from featuresplat.modes._inverse_looks import Baked
from featuresplat.modes._inverse_losses import shading_terms, surface_terms
from featuresplat.modes._inverse_points import PointSurface
from featuresplat.modes._inverse_search import Before
from featuresplat.modes._inverse_start import (
    check_stages,
    first_light,
    inside,
    on_environment,
    oriented,
    points_box,
    resurfaced,
    started,
    started_light,
)
from featuresplat.shading import tone
from featuresplat.shading.deferred import Lighting, shade
from featuresplat.types import Gaussians, RenderOutput

RADIANCE, SPECULAR, DIFFUSE, JOINT = range(4)
PLAIN = {"base_color": 0.5, "roughness": 0.5, "metallic": 0.1, "progress": 0.05}
"""What everything begins as where no material is searched for."""
WIDEST = 0.05
"""Largest standard deviation, in units of the camera extent: wider ones would stand in for the sky."""
FLAT = 0.02
"""Thickness of a Gaussian as a share of its shorter axis."""
FREE = 0.5
"""Share of a pixel that is not covered from which on it shows the light."""
AGAIN = 50
"""Steps between two looks at which planes of the points the Gaussians are near."""
REFRESH = 100
"""Steps between two looks at which way the normals point."""
MATERIALS = {"base_color": 3, "roughness": 1, "metallic": 1, "progress": 1}
"""Logits per Gaussian, and their channels."""


class Mode(static.Mode):
    """Gaussians with materials, and the light around them, in the training frame."""

    def __init__(self, inputs: modes.ModeInputs):
        config = inputs.config.inverse
        check_stages(config)
        if inputs.dataset is not None and not has_begun(inputs.config):
            check_photographs(inputs.dataset)
        if config.start is not None:
            modes.Mode.__init__(self, inputs)
            self.gaussian_params = {k: Parameter(v) for k, v in started(inputs).items()}
        else:
            super().__init__(inputs)
            oriented(self.gaussian_params)
        points = inputs.points if config.points_weight else None
        self.surface = PointSurface.of(None if points is None else points.xyz.to(inputs.device))
        before = started_light(inputs)
        if self.surface is not None and before is None:  # a run with a light has its surface
            params = {k: v.detach() for k, v in self.gaussian_params.items()}
            views = self._views() if inputs.dataset is not None else None
            params = resurfaced(params, self.surface, inputs, FLAT, views)
            self.gaussian_params = {k: Parameter(v.to(inputs.device)) for k, v in params.items()}
        self.planes: tuple[Tensor, Tensor, Tensor] | None = None
        means = self.gaussian_params["means"]
        for name, channels in MATERIALS.items():
            self.gaussian_params[name] = Parameter(means.new_zeros(len(means), channels))
        first = first_light(inputs)
        self.light = FittedLight(config.light_size, first, inputs.device, config.white_weight, config.even_weight)
        if before is not None:
            self.light.set(before)
        self.extra_params = self.light.params
        self.on_environment = on_environment(inputs)
        self.box = points_box(inputs) if self.on_environment else None
        self.stage = RADIANCE
        self.sides: Tensor | None = None
        self.baked: Baked | None = None
        self.gap: Tensor | None = None
        self.again = False  # whether the joint stage's second search is done
        self._view: dict[str, Any] = {}

    def at(self, time: float | None = None) -> Gaussians:
        return Gaussians(**{k: v for k, v in self.gaussian_params.items() if k not in MATERIALS})

    @property
    def fixed(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """From the specular stage on: what light reaches whom was found for these Gaussians."""
        return self.stage != RADIANCE

    # What the optimiser is told

    def parameter_groups(self) -> list[dict[str, Any]]:
        c = self.config.inverse
        rates = {"progress": c.progress_lr} | {k: c.material_lr for k in MATERIALS if k != "progress"}
        gaussians = {k: v for k, v in self.gaussian_params.items() if k not in MATERIALS}
        everything, self.gaussian_params = self.gaussian_params, gaussians
        groups = super().parameter_groups()
        self.gaussian_params = everything
        groups += [{"name": k, "params": [everything[k]], "lr": rates[k]} for k in MATERIALS]
        return groups + [{"name": k, "params": [p], "lr": c.light_lr} for k, p in self.extra_params.items()]

    def rates(self, progress: float) -> dict[str, float]:
        c, stage = self.config.inverse, self._stage_at(progress)
        last = c.stages[-1]
        fade = 1.0 if progress < last else 0.1 ** ((progress - last) / max(1 - last, 1e-9))
        # What light reaches whom was found for these Gaussians; and the light itself could take their place.
        held = dict.fromkeys(("means", "log_scales", "logit_opacities"), 0.0)
        if stage == RADIANCE:  # by its end the Gaussians have come to rest
            held = {"means": modes.decayed(self.config.optim, progress / c.stages[0])}
        materials = dict.fromkeys(("base_color", "roughness"), c.material_lr * fade)
        materials |= {
            "metallic": c.material_lr * fade if stage >= DIFFUSE else 0.0,
            # Which Gaussians are mirrors was measured; the specular stage does not question it.
            "progress": c.progress_lr * {SPECULAR: 0.0, JOINT: 0.25}.get(stage, 1.0),
        }
        light = {k: c.light_lr * fade * DAMPED**level for level, k in enumerate(self.extra_params)}
        return held | materials | light

    def _stage_at(self, progress: float) -> int:
        return sum(progress >= share and share < 1 for share in self.config.inverse.stages)

    # The steps

    def before_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        stage = self._stage_at(step / max(self.config.steps - 1, 1))
        for entered in range(self.stage + 1, stage + 1):  # each in its turn, however few the steps
            self.stage = entered
            self._enter(entered, optimizer)
        middle = (1 + self.config.inverse.stages[-1]) / 2  # of the joint stage
        if self.stage == JOINT and not self.again and step >= middle * self.config.steps:
            self.again = True
            self._begin_diffuse()
        if self.stage != RADIANCE and step % EVERY == 0:
            self.light.pull()
        means = self.gaussian_params["means"]
        if self.surface is not None and (self.planes is None or step % AGAIN == 0 or len(self.planes[0]) != len(means)):
            self.planes = self.surface.planes(means)

    def after_step(self, step: int, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
        super().after_step(step, optimizer, generator)
        with torch.no_grad():
            scales = self.gaussian_params["log_scales"]
            scales[:, :2].clamp_(max=math.log(WIDEST))
            scales[:, 2] = scales[:, :2].amin(1) + math.log(FLAT)
            if self.box is not None and step % REFRESH == 0 and self.stage == RADIANCE:
                means, logits = self.gaussian_params["means"], self.gaussian_params["logit_opacities"]
                logits[~inside(means, self.box)] = -8.0  # densification takes them for dead and moves them
        if self.stage != RADIANCE:
            if self.light.moved:
                self.light.filter()
            if step % REFRESH == 0:
                self._orient()

    @torch.no_grad()
    def _enter(self, stage: int, optimizer: torch.optim.Optimizer) -> None:
        """What changes at the beginning of a stage."""
        if stage == SPECULAR:
            if self.on_environment:
                looks.fill_unseen(self.light, self.at().detach(), self._views())
            self._orient()
            self._bake()
            self._begin_specular()
        if stage == DIFFUSE:
            self._orient()
            self._begin_diffuse()
        if stage == JOINT:
            self._orient()
            self._bake()
            self._begin_diffuse()  # the light is better known now

    def _begin_specular(self) -> None:
        g, sides = self.at().detach(), self.sides
        assert sides is not None
        if self.config.inverse.search:
            self._take(guess.mirrors(g, sides, self._views(), self.light, self.baked))
        else:
            self.light.filter()
            self._take({k: v.new_full(v.shape, PLAIN[k]) for k, v in self.gaussian_params.items() if k in PLAIN})

    def _begin_diffuse(self) -> None:
        if not self.config.inverse.search:
            return
        g, sides = self.at().detach(), self.sides
        assert sides is not None
        now = {k: v.sigmoid() for k, v in self.gaussian_params.items() if k in MATERIALS}
        before = None if self.gap is None else Before(self.gap, self.again, now["base_color"], now["metallic"][:, 0])
        named = self._views(), self.light, self.baked, self.shown, self.config.inverse.mask_weight, before
        values, self.gap = guess.materials(g, sides, *named)
        if self.again:  # metals have been fitted by now, and lamps that grew do not tell of them
            values = {k: torch.where(now["metallic"] > 0.5, v, values[k]) for k, v in now.items()}
        self._take(values)

    @torch.no_grad()
    def _take(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.gaussian_params[name].copy_(px.logit(value))

    def _views(self) -> solve.Views:
        data, inputs = self.inputs.dataset, self.inputs
        assert data is not None
        return solve.Views(
            inputs.cameras,
            lambda i: data.image(data.train[i]),
            inputs.device,
            settings=self.settings,
            backend=self.config.backend,
        )

    def _orient(self) -> None:
        self.sides, self.shown, self.bend = looks.oriented(self.at().detach(), self._views())

    @torch.no_grad()
    def _bake(self) -> None:
        """Which light reaches whom, from where the Gaussians are now."""
        if not self.config.inverse.shadows:
            return
        g = self.at()
        assert self.sides is not None
        named = {"means": g.means, "quats": g.quats, "scales": g.scales, "opacities": g.opacities, "colors": g.colors}
        self.baked = Baked({**named, "sides": self.sides, "shown": self.shown})

    # The image

    def render(self, view: modes.View) -> RenderOutput:
        g = self.at(view.time)
        centre, rays = px.view_rays(view.viewmat, view.K, view.width, view.height)
        towards = centre - g.means.detach()
        normals = px.shortest_axes(g.quats, g.log_scales)
        normals = px.facing(normals, towards if self.sides is None else self.sides)
        if self.stage == RADIANCE:
            z = (g.means * view.viewmat[2, :3]).sum(1, keepdim=True) + view.viewmat[2, 3]
            features = torch.cat([normals, px.plane_distances(g.means, normals, centre), z, z * z], 1)
        else:
            share = 1.0 if self.stage == SPECULAR else self.config.inverse.normal_gradient
            features = self._features(px.damped(normals, share), towards)
        camera = view.viewmat[None], view.K[None], view.width, view.height
        out = raster.rasterize(
            g.means,
            g.quats,
            g.scales,
            g.opacities,
            g.sh,
            *camera,
            features=features,
            sh_degree=min(view.sh_degree, g.sh_degree),
            geometry_grad="full" if self.stage == RADIANCE else "none",
            absgrad=view.absgrad,
            settings=self.settings,
            backend=self.config.backend,
        )
        assert out.rgb is not None
        assert out.features is not None
        rgb = out.rgb[0]
        behind = self._behind(view, out.alpha[0], rays)
        out.rgb = (rgb + behind)[None]
        self._view = {"centre": centre, "rays": rays}
        if self.stage != RADIANCE:
            self._view |= self._distil(out, rgb.detach(), behind.detach(), view.step)
        return out

    def _distil(self, out: RenderOutput, raw: Tensor, behind: Tensor, step: int) -> dict[str, Any]:
        """The physical model at some of the pixels, and its mixture with the radiance.

        The radiance answers to the photograph by itself and is constant here: if it could make up for the physical
        model's errors, the progress would never hear of them.
        """
        assert out.features is not None
        rows = px.surface_rows(out.alpha)
        if len(rows) > self.config.inverse.pixels:
            draw = torch.Generator().manual_seed(hash((self.config.seed, step)) & 0x7FFFFFFF)
            rows = rows[torch.randperm(len(rows), generator=draw)[: self.config.inverse.pixels].to(rows.device)]
        view = self._view
        # Features do not move geometry here, so what they are divided by must not either.
        alpha = out.alpha[0].detach()
        pixels = px.pixels_of(out.features[0], alpha, out.depth[0], view["centre"], view["rays"], rows)
        diffuse, specular = shade(pixels.surface, pixels.received, self._lighting())
        shown = tone.display(diffuse + specular, self.config.inverse.tone)
        a = pixels.progress if self.config.inverse.progress else torch.ones_like(pixels.progress)
        rest = raw.reshape(-1, 3)[rows], behind.reshape(-1, 3)[rows]
        return {"pixels": pixels, "mixed": a * pixels.alpha * shown + (1 - a) * rest[0] + rest[1]}

    def _lighting(self) -> Lighting:
        assert self.light.atlas is not None
        if self.baked is None:
            return Lighting(self.light.prefilter, self.light.atlas)
        return Lighting(self.light.prefilter, self.light.atlas, self.baked.occluders, self.baked.cells)

    def _features(self, normals: Tensor, towards: Tensor) -> Tensor:
        """[N, CHANNELS] what is splatted for shading; ``towards`` [N, 3] leads to the camera."""
        p = [self.gaussian_params[k].sigmoid() for k in MATERIALS]
        return torch.cat([*p, normals, looks.diffuse_light(self.light, self.baked, normals), self.bend, -towards], 1)

    def _behind(self, view: modes.View, alpha: Tensor, rays: Tensor) -> Tensor:
        """[H, W, 3] what shines through where Gaussians leave room."""
        through = 1 - alpha
        if not self.on_environment:
            return through * view.background if view.background is not None else torch.zeros_like(rays)
        rows = (through.detach().reshape(-1) > 0.01).nonzero()[:, 0]
        dirs = rays.reshape(-1, 3)[rows]
        radiance = self.light.seen(dirs)
        # What is seen past a half-covered pixel says nothing of the light: it would take the place of what covers.
        free = through.detach().reshape(-1, 1)[rows] > FREE
        radiance = torch.where(free, radiance, radiance.detach())
        shown = tone.display(radiance, self.config.inverse.tone) * through.reshape(-1, 1)[rows]
        return px.spread(shown, rows, view.height, view.width)

    # What it is held to

    def losses(self, out: RenderOutput, batch: modes.Batch) -> dict[str, Tensor]:
        terms = super().losses(out, batch)
        if self.surface is not None and self.planes is not None:
            p = self.gaussian_params
            pull = self.surface.pull(p["means"], p["quats"], p["log_scales"], self.planes)
            terms["points"] = self.config.inverse.points_weight * pull
        if self.stage == RADIANCE:
            return terms | surface_terms(out, self._view["centre"], self._view["rays"], self.config.inverse)
        return terms | shading_terms(out, batch, self._view, self.config.inverse)

    # What outlives it

    def buffers(self) -> dict[str, Tensor]:
        out = {"stage": torch.tensor(self.stage), "again": torch.tensor(self.again)}
        if self.sides is not None:
            out |= {"sides": self.sides, "shown": self.shown, "bend": self.bend}
        if self.gap is not None:
            out["gap"] = self.gap
        if self.planes is not None:
            out |= {f"planes.{k}": v for k, v in enumerate(self.planes)}
        out |= {f"gathered.{k}": v for k, v in self.light.gathered().items()}
        if self.baked is not None:
            out |= {f"baked.{k}": v for k, v in self.baked.source.items()}
        return out

    def load_buffers(self, buffers: dict[str, Tensor]) -> None:
        here = {k: v.to(self.inputs.device) for k, v in buffers.items()}
        self.stage = int(here["stage"])
        if "sides" in here:
            self.sides, self.shown, self.bend = here["sides"], here["shown"], here["bend"]
        self.gap, self.again = here.get("gap"), bool(here.get("again", False))
        if "planes.0" in here:
            self.planes = here["planes.0"], here["planes.1"], here["planes.2"]
        if self.stage != RADIANCE:
            self.light.restore({k.removeprefix("gathered."): v for k, v in here.items() if k.startswith("gathered.")})
        source = {k.removeprefix("baked."): v for k, v in here.items() if k.startswith("baked.")}
        if source:
            self.baked = Baked(source)

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        g = self.at()
        p = {k: self.gaussian_params[k].detach().sigmoid() for k in MATERIALS}
        normals = px.shortest_axes(g.quats, g.log_scales)
        out = {**p, "normal": normals if self.sides is None else px.facing(normals, self.sides)}
        out["shown"] = torch.ones_like(g.logit_opacities) if self.sides is None else self.shown
        light = looks.diffuse_light(self.light, self.baked, normals).split([3, 3, 1], 1)
        out |= dict(zip(("direct", "reflected", "openness"), light, strict=True))
        if self.stage == RADIANCE:
            out["progress"] = torch.zeros_like(out["progress"])
        elif not self.config.inverse.progress:
            out["progress"] = torch.ones_like(out["progress"])
        scene = {"light": self.light.cube(), "environment": torch.tensor(self.on_environment)}
        return {f"gaussian.{k}": v.clone() for k, v in out.items()} | scene


# What a finished scene is asked (see `featuresplat.modes`).
from featuresplat.modes._inverse_begin import begun, has_begun, settled  # noqa: E402, F401
from featuresplat.modes._inverse_edits import EDITS, joined, moved, radiating, recolored  # noqa: E402, F401
from featuresplat.modes._inverse_eval import measure  # noqa: E402, F401
from featuresplat.modes._inverse_files import ENDINGS, columns, from_columns  # noqa: E402, F401
from featuresplat.modes._inverse_panel import panel  # noqa: E402, F401
from featuresplat.modes._inverse_report import report  # noqa: E402, F401
from featuresplat.modes._inverse_scene import KINDS, picture, render  # noqa: E402, F401
