"""Building blocks of the demo scene: meshes from formulas and materials from shader nodes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import bmesh
import bpy
import numpy as np
from mathutils import Vector

Point = tuple[float, ...]
Mesh = tuple[list[Point], list[list[int]]]


def numbers(text: str) -> list[Point]:
    """A control polygon from text: numbers by spaces, points by commas."""
    return [tuple(float(c) for c in point.split()) for point in text.split(",")]


def rounded(points: Sequence[Point], steps: int = 4, closed: bool = False) -> list[Point]:
    """Corner cutting (Chaikin): a smooth quadratic B-spline through the middle of each control segment.

    A control point given twice keeps a tighter corner, three times an almost sharp one.
    """
    pts = [np.asarray(p, float) for p in points]
    for _ in range(steps):
        ring = pts + pts[:1] if closed else pts
        cut = [q for a, b in itertools.pairwise(ring) for q in (0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b)]
        pts = cut if closed else [pts[0], *cut[1:-1], pts[-1]]
    return [tuple(p) for p in pts]


def lathe(profile: Sequence[Point], segments: int = 96) -> Mesh:
    """Revolve an ``(r, z)`` profile about z; a radius of 0 makes a pole."""
    verts: list[Point] = []
    rows: list[list[int]] = []
    for r, z in profile:
        if r < 1e-6:
            rows.append([len(verts)] * segments)
            verts.append((0.0, 0.0, z))
            continue
        rows.append([len(verts) + i for i in range(segments)])
        for i in range(segments):
            a = 2 * math.pi * i / segments
            verts.append((r * math.cos(a), r * math.sin(a), z))
    faces = []
    for lo, hi in itertools.pairwise(rows):
        for i in range(segments):
            j = (i + 1) % segments
            face = list(dict.fromkeys([lo[i], lo[j], hi[j], hi[i]]))
            if len(face) >= 3:
                faces.append(face)
    return verts, faces


def tube(path: Sequence[Point], radii: Sequence[Point], segments: int = 32, sides: int = 0) -> Mesh:
    """Sweep an ellipse of radii ``(across, along the up side)`` along a path, with closed round ends.

    ``sides`` > 0 flattens the section towards a polygon with that many sides (a banana has five).
    """
    pts = [Vector(p) for p in path]
    verts: list[Point] = []
    normal = Vector((0, 0, 1))
    for i, p in enumerate(pts):
        t = (pts[min(i + 1, len(pts) - 1)] - pts[max(i - 1, 0)]).normalized()
        normal = (normal - t * normal.dot(t)).normalized()  # parallel transport: the section does not twist
        side = t.cross(normal)
        for k in range(segments):
            a = 2 * math.pi * k / segments
            f = 1.0
            if sides:
                f = 1 + 0.07 * math.cos(sides * a)
            v = p + side * (radii[i][0] * f * math.cos(a)) + normal * (radii[i][1] * f * math.sin(a))
            verts.append(tuple(v))
    faces = []
    for i in range(len(pts) - 1):
        for k in range(segments):
            j = (k + 1) % segments
            a, b = i * segments, (i + 1) * segments
            faces.append([a + k, a + j, b + j, b + k])
    faces.append(list(range(segments))[::-1])
    faces.append(list(range((len(pts) - 1) * segments, len(pts) * segments)))
    return verts, faces


def box(size: Point, centre: Point, bevel: float = 0.0) -> Mesh:
    """Axis-aligned box with rounded edges."""
    bm = bmesh.new()
    bmesh.ops.create_cube(bm, size=1.0)
    for v in bm.verts:
        v.co = Vector(s * c for s, c in zip(size, v.co, strict=True)) + Vector(centre)
    if bevel:
        bmesh.ops.bevel(bm, geom=bm.edges[:], offset=bevel, segments=4, profile=0.5, affect="EDGES")
    bm.verts.index_update()
    mesh = [tuple(v.co) for v in bm.verts], [[v.index for v in f.verts] for f in bm.faces]
    bm.free()
    return mesh


def spline(points: Sequence[Point], samples: int) -> np.ndarray:
    """``samples`` points [S, k] at equal arc length along the rounded control polygon."""
    p = np.asarray(rounded(points, 5))
    s = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(p[:, :3], axis=0), axis=1))])
    u = np.linspace(0, s[-1], samples)
    return np.stack([np.interp(u, s, p[:, k]) for k in range(p.shape[1])], 1)


class Shader:
    """A Principled material and short names for the nodes that feed it."""

    def __init__(self, name: str, color: Point = (0.8, 0.8, 0.8), roughness: float = 0.4, **inputs: float):
        self.material = bpy.data.materials.new(name)
        self.material.use_nodes = True
        self.tree = self.material.node_tree
        self.bsdf = self.tree.nodes["Principled BSDF"]
        self.set("Base Color", (*color, 1.0))
        self.set("Roughness", roughness)
        for key, value in inputs.items():
            self.set(key.replace("_", " "), value)

    def set(self, socket: str, value: object) -> None:
        """Set an input of the Principled node, or link it when ``value`` is an output socket."""
        self.link(value, self.bsdf.inputs[socket])

    def link(self, value: object, target: bpy.types.NodeSocket) -> None:
        if isinstance(value, bpy.types.NodeSocket):
            self.tree.links.new(value, target)
        else:
            target.default_value = value

    def node(self, kind: str, inputs: dict | None = None, **settings: object) -> bpy.types.Node:
        n = self.tree.nodes.new(kind)
        for key, value in settings.items():
            setattr(n, key, value)
        for key, value in (inputs or {}).items():
            self.link(value, n.inputs[key])
        return n

    def coords(self, scale: Point = (1, 1, 1)) -> bpy.types.NodeSocket:
        """Object coordinates times ``scale``."""
        obj = self.node("ShaderNodeTexCoord").outputs["Object"]
        return self.node("ShaderNodeMapping", {"Vector": obj, "Scale": scale}).outputs["Vector"]

    def noise(self, scale: float, detail: float = 4, stretch: Point = (1, 1, 1), distortion: float = 0.0):
        return self.node(
            "ShaderNodeTexNoise",
            {"Vector": self.coords(stretch), "Scale": scale, "Detail": detail, "Distortion": distortion},
        ).outputs["Fac"]

    def math(self, operation: str, a: object, b: object = 0.0):
        return self.node("ShaderNodeMath", {0: a, 1: b}, operation=operation).outputs[0]

    def ramp(self, fac: object, stops: Sequence[tuple[float, Point]]):
        n = self.node("ShaderNodeValToRGB", {"Fac": fac})
        elements = n.color_ramp.elements
        while len(elements) < len(stops):
            elements.new(0.5)
        for e, (position, color) in zip(elements, stops, strict=True):
            e.position, e.color = position, (*color, 1.0)
        return n.outputs["Color"]

    def mix(self, fac: object, a: object, b: object, blend: str = "MIX"):
        n = self.node("ShaderNodeMixRGB", {"Fac": fac}, blend_type=blend)
        for key, value in (("Color1", a), ("Color2", b)):
            self.link(value if isinstance(value, bpy.types.NodeSocket) else (*value, 1.0), n.inputs[key])
        return n.outputs["Color"]

    def bump(self, height: object, strength: float, distance: float = 0.01) -> None:
        n = self.node("ShaderNodeBump", {"Height": height, "Strength": strength, "Distance": distance})
        self.set("Normal", n.outputs["Normal"])

    def along(self, axis: str):
        return self.node("ShaderNodeSeparateXYZ", {0: self.coords()}).outputs[axis]

    def attribute(self, name: str):
        return self.node("ShaderNodeAttribute", attribute_name=name).outputs["Color"]


def wood(name: str, dark: Point, light: Point, plank: float, roughness: float = 0.38) -> Shader:
    """Planks along x: stretched noise for the grain, another phase and tint for every plank."""
    s = Shader(name, roughness=roughness)
    y = s.math("DIVIDE", s.along("Y"), plank)
    cell = s.math("FLOOR", y)
    tint = s.node("ShaderNodeTexWhiteNoise", {"W": cell}, noise_dimensions="1D").outputs["Value"]
    shift = s.math("MULTIPLY", cell, 7.31)
    at = s.node("ShaderNodeCombineXYZ", {"X": s.along("X"), "Y": s.math("MULTIPLY", y, plank), "Z": shift}).outputs[0]

    def grain(scale: float, stretch: Point, detail: float, distortion: float):
        v = s.node("ShaderNodeMapping", {"Vector": at, "Scale": stretch}).outputs["Vector"]
        return s.node(
            "ShaderNodeTexNoise", {"Vector": v, "Scale": scale, "Detail": detail, "Distortion": distortion}
        ).outputs["Fac"]

    broad = grain(2.2, (0.35, 5.0, 1.0), 5, 1.2)
    fine = grain(9.0, (0.7, 16.0, 1.0), 3, 0.3)
    fac = s.math("ADD", s.math("MULTIPLY", broad, 0.72), s.math("MULTIPLY", fine, 0.28))
    mid = tuple((a + b) / 2 for a, b in zip(dark, light, strict=True))
    color = s.ramp(fac, [(0.34, dark), (0.5, mid), (0.66, light)])
    shade = s.ramp(tint, [(0.0, (0.72, 0.70, 0.68)), (1.0, (1.12, 1.08, 1.04))])
    color = s.mix(1.0, color, shade, "MULTIPLY")
    seam = s.math("ABSOLUTE", s.math("SUBTRACT", s.math("FRACT", y), 0.5))
    gap = s.math("GREATER_THAN", seam, 0.5 - 0.0022 / plank)
    s.set("Base Color", s.mix(gap, color, tuple(0.25 * c for c in dark)))
    s.bump(s.math("SUBTRACT", fac, s.math("MULTIPLY", gap, 0.8)), 0.12, 0.006)
    return s
