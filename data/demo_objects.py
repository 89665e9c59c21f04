"""The objects of the demo scene, every one made from formulas.

Units are the scene's metres: about three times life size. An object stands on z = 0 at the origin of its own
frame and is a list of ``(mesh, material)`` parts, which ``make_demo.py`` joins and places.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import bmesh
import bpy
import numpy as np
from demo_shapes import Mesh, Point, Shader, box, lathe, numbers, rounded, spline, tube
from mathutils import Matrix, Vector

Part = tuple[Mesh, bpy.types.Material]


def soccer_ball(radius: float = 0.17) -> list[Part]:
    """A truncated icosahedron blown up to a sphere: 12 black pentagons, 20 white hexagons, sunk seams."""
    g = (1 + math.sqrt(5)) / 2
    five = [np.array(v) for a in (-1, 1) for b in (-g, g) for v in ((0, a, b), (a, b, 0), (b, 0, a))]
    five = [v / np.linalg.norm(v) for v in five]
    six = []
    for i in range(12):
        for j in range(i):
            for k in range(j):
                if min(five[i] @ five[j], five[j] @ five[k], five[i] @ five[k]) > 0.4:
                    c = five[i] + five[j] + five[k]
                    six.append(c / np.linalg.norm(c))
    # The faces' distances from the centre, for edge 1: a direction belongs to the plane it meets first.
    d5, d6 = math.sqrt(125 + 41 * math.sqrt(5)) / (2 * math.sqrt(10)), math.sqrt(3) * (3 + math.sqrt(5)) / 4
    planes = np.array([v / d5 for v in five] + [v / d6 for v in six])

    bm = bmesh.new()
    bmesh.ops.create_icosphere(bm, subdivisions=7, radius=1.0)
    dirs = np.array([v.co for v in bm.verts])
    dirs /= np.linalg.norm(dirs, axis=1, keepdims=True)
    bm.verts.index_update()
    faces = [[v.index for v in f.verts] for f in bm.faces]
    bm.free()
    reach = dirs @ planes.T
    order = np.sort(reach, axis=1)
    gap = (order[:, -1] - order[:, -2]) * d6
    seam = np.exp(-((gap / 0.035) ** 2))
    verts = dirs * (radius * (1 - 0.022 * seam))[:, None] + [0, 0, radius * 0.995]
    black = reach.argmax(1) < 12
    color = np.where(black[:, None], [0.012, 0.012, 0.014], [0.82, 0.82, 0.80])
    color = color * (1 - 0.75 * np.exp(-((gap / 0.018) ** 2)))[:, None]
    s = Shader("soccer ball", roughness=0.33)
    s.set("Base Color", s.attribute("paint"))
    s.bump(s.noise(140, 2), 0.05, 0.004)
    return [(([tuple(v) for v in verts], faces, color), s.material)]  # type: ignore[list-item]


def coffee_mug() -> list[Part]:
    """Glazed mug with a C handle, coffee inside."""
    r, h, w = 0.105, 0.235, 0.011
    outer = [(0, 0.006), (r - 0.03, 0.006), (r - 0.026, 0), (r - 0.012, 0), (r - 0.006, 0.008), (r, 0.03)]
    wall = [(r, 0.03), (r, h - 0.012), (r, h - 0.012), (r, h), (r - w, h), (r - w, h - 0.012)]
    inner = [(r - w, 0.04), (r - w, 0.018), (r - w - 0.03, 0.014), (0, 0.014)]
    s = Shader("mug glaze", (0.62, 0.035, 0.028), 0.12, Coat_Weight=0.6)
    white = Shader("mug inside", (0.86, 0.84, 0.79), 0.15, Coat_Weight=0.4)
    coffee = Shader("coffee", (0.035, 0.014, 0.006), 0.18, Specular_IOR_Level=0.25)
    path = spline(
        [
            (r - 0.006, 0, 0.185),
            (r + 0.05, 0, 0.205),
            (r + 0.092, 0, 0.17),
            (r + 0.092, 0, 0.10),
            (r + 0.055, 0, 0.05),
            (r - 0.006, 0, 0.062),
        ],
        48,
    )
    handle = tube([tuple(p) for p in path], [(0.019, 0.0125)] * 48)
    body = lathe(rounded(outer + wall[1:4], 3))
    lining = lathe(rounded([wall[3], *wall[4:], *inner], 3))
    level = lathe([(0, h - 0.045), (r - w + 0.001, h - 0.045)])
    return [(body, s.material), (handle, s.material), (lining, white.material), (level, coffee.material)]


def frying_pan() -> list[Part]:
    """Cast pan with sloping wall, dark coating, long handle with a hanging hole's ring."""
    profile = rounded(
        numbers(
            "0 0, 0.19 0, 0.19 0, 0.205 0.004, 0.262 0.072, 0.268 0.08, 0.262 0.084, 0.255 0.078, "
            "0.2 0.016, 0.192 0.013, 0.17 0.012, 0 0.012"
        ),
        3,
    )
    iron = Shader("pan", (0.02, 0.02, 0.022), 0.5, Specular_IOR_Level=0.45)
    iron.bump(iron.noise(220, 2), 0.08, 0.003)
    steel = Shader("pan rivets", (0.6, 0.6, 0.62), 0.25, Metallic=1.0)
    grip = Shader("pan handle", (0.02, 0.02, 0.021), 0.42)
    p = spline(numbers("0.235 0 0.062, 0.3 0 0.085, 0.37 0 0.11, 0.48 0 0.125, 0.58 0 0.124"), 60)
    u = np.linspace(0, 1, 60)
    wide = 0.020 + 0.012 * np.sin(np.pi * u) ** 0.5 * u
    thick = 0.011 + 0.006 * np.sin(np.pi * u)
    taper = np.sqrt(np.clip(1 - ((u - 0.93) / 0.07).clip(0) ** 2, 0.02, 1))
    handle = tube([tuple(q) for q in p], list(zip(wide * taper, thick * taper, strict=True)))
    hole = lathe(rounded(numbers("0.011 -0.002, 0.016 0.002, 0.011 0.006, 0.006 0.002, 0.011 -0.002"), 2), 32)
    hole = [(x + 0.548, y, z + 0.139) for x, y, z in hole[0]], hole[1]
    rivets = []
    for dy in (-0.012, 0.012):
        v, f = lathe(rounded(numbers("0.008 -0.004, 0.008 0.002, 0.004 0.004, 0 0.004"), 2), 24)
        rivets.append((([(x + 0.232, y + dy, z + 0.052) for x, y, z in v], f), steel.material))
    return [(lathe(profile, 128), iron.material), (handle, grip.material), (hole, steel.material), *rivets]


def bowl() -> list[Part]:
    """Deep ceramic mixing bowl with a rolled rim: white, two blue bands outside."""
    outside = numbers("0 0.008, 0.09 0.008, 0.095 0, 0.11 0, 0.112 0.014, 0.165 0.05, 0.2 0.12, 0.21 0.2, 0.212 0.215")
    rim = numbers("0.228 0.217, 0.23 0.23, 0.212 0.232, 0.202 0.222")
    inside = numbers("0.192 0.13, 0.155 0.062, 0.1 0.026, 0 0.02")
    white, blue = (0.66, 0.64, 0.59), (0.035, 0.12, 0.42)
    inner = Shader("bowl inside", white, 0.2, Coat_Weight=0.2)
    outer = Shader("bowl outside", roughness=0.2, Coat_Weight=0.2)
    bands = [(0.0, white), (0.1, blue), (0.125, white), (0.14, blue), (0.165, white)]
    color = outer.ramp(outer.along("Z"), bands)
    color.node.color_ramp.interpolation = "CONSTANT"
    outer.set("Base Color", color)
    return [
        (lathe(rounded([*outside, *rim[:2]], 3), 128), outer.material),
        (lathe(rounded([rim[1], *rim[1:], *inside], 3), 128), inner.material),
    ]


def banana_tube(radius: float, sweep: float, turn: float) -> tuple[np.ndarray, list[list[int]], np.ndarray]:
    """One banana with its stem's end at the origin, bent to a circle, turned about z; in degrees."""
    n, ring = 120, 40
    u = np.linspace(0, 1, n)  # 0 at the blossom's tip, 1 at the stem
    a = (1 - u) * math.radians(sweep)
    x, y = radius * np.sin(a), radius * (1 - np.cos(a))
    body = 0.048 * np.sin(np.pi * np.clip((u - 0.02) / 0.93, 0, 1)).clip(0) ** 0.42
    stem = 0.0175 + 0.004 * np.exp(-(((u - 1.0) / 0.02) ** 2))
    neck = 1 / (1 + np.exp(-(u - 0.875) / 0.018))
    r = np.maximum(body * (1 - neck) + stem * neck, 0.013)
    r[0] *= 0.75
    z = 0.0475 + 0.035 * np.clip((u - 0.75) / 0.25, 0, 1) ** 1.5
    verts, faces = tube(list(zip(x, y, z, strict=True)), [(q, q) for q in r], ring, sides=5)
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    turned = np.asarray(verts) @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])

    at = np.repeat(u, ring)[:, None]
    around = np.tile(np.arange(ring) * 2 * np.pi / ring, n)[:, None]
    yellow, green, brown = np.array([[0.83, 0.52, 0.035], [0.52, 0.50, 0.06], [0.06, 0.032, 0.012]])
    ripe = np.clip((at - 0.80) / 0.12, 0, 1) * 0.6 + np.clip((0.10 - at) / 0.08, 0, 1) * 0.3
    color = (yellow * (1 - ripe) + green * ripe) * (1 - 0.22 * np.clip(np.cos(5 * around), 0, 1) ** 12)
    tip = (1 / (1 + np.exp((at - 0.018) / 0.006)) + 1 / (1 + np.exp(-(at - 0.975) / 0.006))).clip(0, 1)
    return turned, faces, color * (1 - tip) + brown * tip


def banana() -> list[Part]:
    """Two bananas joined at the stem, lying on their side: five-sided bent tubes, brown tips and freckles."""
    s = Shader("banana", roughness=0.42)
    spots = s.ramp(s.noise(32, 5, distortion=0.6), [(0.64, (1, 1, 1)), (0.71, (0.42, 0.26, 0.14))])
    streak = s.ramp(s.noise(9, 6), [(0.3, (0.93, 0.9, 0.8)), (0.7, (1.05, 1.05, 1.0))])
    s.set("Base Color", s.mix(1.0, s.mix(1.0, s.attribute("paint"), spots, "MULTIPLY"), streak, "MULTIPLY"))
    parts = []
    for radius, sweep, turn in ((0.275, 112, 8), (0.24, 120, -22)):
        verts, faces, color = banana_tube(radius, sweep, turn)
        parts.append((([tuple(v) for v in verts - [0.14, 0.09, 0]], faces, color), s.material))
    return parts


def teapot() -> list[Part]:
    """Round body, lid with knob, curved spout, ear handle; glazed stoneware."""
    body = rounded(
        numbers(
            "0 0.008, 0.09 0.008, 0.094 0, 0.108 0, 0.112 0.012, 0.168 0.06, 0.186 0.13, 0.168 0.2, "
            "0.115 0.246, 0.092 0.252, 0.092 0.252, 0.092 0.262, 0.084 0.262, 0.084 0.25"
        ),
        3,
    )
    lid = rounded(
        numbers(
            "0.098 0.258, 0.1 0.266, 0.092 0.274, 0.06 0.293, 0.022 0.302, 0.012 0.305, 0.012 0.312, "
            "0.026 0.322, 0.028 0.34, 0.016 0.352, 0 0.354"
        ),
        3,
    )
    s = Shader("teapot", roughness=0.13, Coat_Weight=0.5)
    s.set("Base Color", s.ramp(s.noise(6, 4), [(0.35, (0.60, 0.54, 0.41)), (0.7, (0.68, 0.63, 0.50))]))
    p = spline(numbers("0.13 0 0.085, 0.21 0 0.09, 0.245 0 0.15, 0.262 0 0.215, 0.315 0 0.252"), 48)
    u = np.linspace(0, 1, 48)
    r = 0.052 * (1 - u) ** 1.3 + 0.021
    spout = tube([tuple(q) for q in p[:-1]], [(q, q * 1.15) for q in r[:-1]])
    v, f = spout
    spout = v, f[:-1]  # the mouth stays open
    inside = tube([tuple(q) for q in p[20:]], [(q * 0.8, q * 0.9) for q in r[20:]])
    inside = inside[0], [face[::-1] for face in inside[1][:-1]]
    end = [tuple(p[-2] + (p[-1] - p[-2]) * t) for t in (0, 0.5, 1)]
    mouth = tube(end, [(r[-2], r[-2] * 1.15), (r[-2] * 0.98, r[-2] * 1.1), (r[-2] * 0.8, r[-2] * 0.9)])
    mouth = mouth[0], mouth[1][:-2]
    q = spline(numbers("-0.14 0 0.212, -0.21 0 0.245, -0.29 0 0.225, -0.305 0 0.15, -0.26 0 0.09, -0.165 0 0.07"), 56)
    handle = tube([tuple(c) for c in q], [(0.021, 0.0165)] * 56)
    meshes: list[Mesh] = [lathe(body), lathe(lid), spout, mouth, inside, handle]
    return [(m, s.material) for m in meshes]


def orange(radius: float = 0.1) -> list[Part]:
    """An orange with pored peel and stem end, and half of another one, cut face up."""
    t = np.linspace(0, np.pi, 90)
    r = radius * np.sin(t)
    z = radius * 0.95 * (1 - np.cos(t)) - 0.012 * np.exp(-(((np.pi - t) / 0.17) ** 2))
    s = Shader("orange", roughness=0.38, Subsurface_Weight=0.15, Subsurface_Scale=0.02)
    s.set("Base Color", s.ramp(s.noise(9, 3), [(0.3, (0.75, 0.15, 0.006)), (0.7, (0.85, 0.22, 0.01))]))
    pores = s.node("ShaderNodeTexVoronoi", {"Vector": s.coords(), "Scale": 95.0}).outputs["Distance"]
    s.bump(pores, 0.7, 0.006)
    stem = Shader("orange stem", (0.12, 0.17, 0.05), 0.7)
    zc = 2 * radius * 0.95 - 0.014
    star = [(0.0, 0.0, zc + 0.008)]
    for k in range(10):
        q, a = (0.014 if k % 2 else 0.008), k * math.pi / 5
        star.append((q * math.cos(a), q * math.sin(a), zc + 0.006))
    faces = [[0, 1 + k, 1 + (k + 1) % 10] for k in range(10)]
    whole = lathe([(0, 0), *zip(r[1:-1], z[1:-1], strict=True), (0, z[-1])])
    half = lathe([(0, -radius), *[(radius * math.sin(a), -radius * math.cos(a)) for a in np.linspace(0.03, 1.56, 40)]])
    flesh = Shader("orange flesh", roughness=0.5, Subsurface_Weight=0.1, Subsurface_Scale=0.02)
    juicy = flesh.ramp(flesh.noise(60, 3, distortion=1.0), [(0.35, (0.86, 0.8, 0.7)), (0.65, (1.05, 1.05, 1.0))])
    flesh.set("Base Color", flesh.mix(1.0, flesh.attribute("paint"), juicy, "MULTIPLY"))
    disc = cut_face(radius)
    tilt, at = Matrix.Rotation(math.radians(24), 3, Vector((1, 0.4, 0))), Vector((0.20, -0.08, radius))
    half = [tuple(tilt @ Vector(v) + at) for v in half[0]], half[1]
    disc = [tuple(tilt @ Vector(v) + at) for v in disc[0]], disc[1], disc[2]
    return [(whole, s.material), ((star, faces), stem.material), (half, s.material), (disc, flesh.material)]


def cut_face(radius: float) -> tuple[list[Point], list[list[int]], np.ndarray]:
    """The face of a halved orange at z = 0: peel, pith, ten wedges, pale skins; a colour per vertex."""
    segments = 200
    rho = np.linspace(0, 1, 60)
    verts, faces = lathe([(radius * q, 0.0015 * math.exp(-(((q - 0.6) / 0.4) ** 2))) for q in rho], segments)
    at = np.asarray(verts)
    q = np.hypot(at[:, 0], at[:, 1]) / radius
    wedge = np.abs((np.arctan2(at[:, 1], at[:, 0]) * 10 / (2 * np.pi) + 0.5) % 1 - 0.5)
    skin = (wedge * 2 * np.pi / 10 * q < 0.022) | (q < 0.09) | (q > 0.875)
    color = np.where(skin[:, None], [0.86, 0.70, 0.42], [0.88, 0.31, 0.02])
    return verts, faces, np.where(q[:, None] > 0.955, [0.80, 0.18, 0.01], color)


def traffic_cone() -> list[Part]:
    """Orange cone with two white bands on a square base."""
    s = Shader("cone", roughness=0.45)
    o, w = (0.85, 0.11, 0.012), (0.85, 0.85, 0.83)
    bands = [(0.0, o), (0.14, w), (0.2, o), (0.245, w), (0.285, o)]
    color = s.ramp(s.along("Z"), bands)
    color.node.color_ramp.interpolation = "CONSTANT"
    s.set("Base Color", color)
    profile = rounded(
        numbers(
            "0.098 0.022, 0.094 0.022, 0.091 0.026, 0.089 0.04, 0.022 0.355, 0.022 0.355, 0.02 0.361, "
            "0.014 0.361, 0.014 0.355, 0.014 0.3"
        ),
        3,
    )
    base = box((0.235, 0.235, 0.024), (0, 0, 0.012), 0.009)
    return [(lathe(profile), s.material), (base, s.material)]


OBJECTS: dict[str, Callable[[], list[Part]]] = {
    "soccer ball": soccer_ball,
    "coffee mug": coffee_mug,
    "frying pan": frying_pan,
    "mixing bowl": bowl,
    "banana": banana,
    "teapot": teapot,
    "orange": orange,
    "traffic cone": traffic_cone,
}
