"""The demo scene: a table of everyday objects in a room, and its light."""

from __future__ import annotations

import math

import bpy
import demo_shapes as shapes
import numpy as np
from demo_objects import OBJECTS
from mathutils import Vector

# name: (x, y, turn about z in degrees, scale)
LAYOUT = {
    "soccer ball": (-0.06, 0.56, 20, 0.92),
    "coffee mug": (-0.68, 0.48, 150, 1.2),
    "frying pan": (0.44, -0.44, -35, 0.9),
    "mixing bowl": (-0.76, -0.10, 0, 0.93),
    "banana": (-0.20, -0.60, 15, 1.15),
    "teapot": (0.62, 0.45, -35, 1.05),
    "orange": (-0.12, 0.04, 0, 1.15),
    "traffic cone": (0.94, -0.08, 25, 0.95),
}
NAMES = ["room", "wooden table", *LAYOUT]  # the index in the instance masks


def add_object(name: str, parts: list, smooth_angle: float = 35.0) -> bpy.types.Object:
    """One Blender object from ``(mesh, material)`` parts; a mesh may bring a colour per vertex, "paint"."""
    verts: list = []
    faces: list = []
    slots: list[int] = []
    paint: list = []
    materials: list = []
    for mesh, material in parts:
        if material not in materials:
            materials.append(material)
        base = len(verts)
        verts += mesh[0]
        faces += [[i + base for i in f] for f in mesh[1]]
        slots += [materials.index(material)] * len(mesh[1])
        paint += [(*c, 1.0) for c in mesh[2]] if len(mesh) > 2 else [(1.0, 1.0, 1.0, 1.0)] * len(mesh[0])
    data = bpy.data.meshes.new(name)
    data.from_pydata(verts, [], faces)
    for m in materials:
        data.materials.append(m)
    data.polygons.foreach_set("material_index", slots)
    data.attributes.new("paint", "FLOAT_COLOR", "POINT").data.foreach_set("color", np.ravel(paint))
    data.shade_smooth()
    data.set_sharp_from_angle(angle=math.radians(smooth_angle))
    data.update()
    obj = bpy.data.objects.new(name, data)
    bpy.context.scene.collection.objects.link(obj)
    return obj


def build_room() -> None:
    """Floor, four walls, skirting, pictures, a rug and a sideboard: a background with texture."""
    half, height, floor = 5.2, 5.0, -2.2
    shader, box = shapes.Shader, shapes.box
    oak = shapes.wood("floor", (0.16, 0.085, 0.04), (0.36, 0.21, 0.11), 0.5, roughness=0.5)
    add_object("floor", [(box((2 * half, 2 * half, 0.1), (0, 0, floor - 0.05)), oak.material)])
    paint = shader("wall", roughness=0.9)
    paint.set("Base Color", paint.ramp(paint.noise(1.1, 3), [(0.3, (0.52, 0.56, 0.53)), (0.7, (0.62, 0.65, 0.61))]))
    white = shader("skirting", (0.75, 0.74, 0.7), 0.5)
    walls, skirts = [], []
    for sx, sy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        long = (0.1, 2 * half + 0.1) if sx else (2 * half + 0.1, 0.1)
        walls.append((box((*long, height - floor), (sx * half, sy * half, (height + floor) / 2)), paint.material))
        at = (sx * (half - 0.07), sy * (half - 0.07), floor + 0.16)
        skirts.append((box((long[0], long[1], 0.32), at, 0.015), white.material))
    add_object("walls", walls)
    add_object("skirting", skirts)
    add_pictures(half)
    rug = shader("rug", roughness=0.95)
    weave = rug.node("ShaderNodeTexWave", {"Vector": rug.coords(), "Scale": 1.3, "Distortion": 2.0}).outputs["Fac"]
    rug.set(
        "Base Color",
        rug.ramp(weave, [(0.3, (0.33, 0.07, 0.05)), (0.5, (0.5, 0.38, 0.24)), (0.7, (0.09, 0.12, 0.2))]),
    )
    add_object("rug", [(box((5.2, 4.2, 0.04), (0.1, 0, floor + 0.02), 0.015), rug.material)])
    teak = shapes.wood("sideboard", (0.11, 0.05, 0.022), (0.25, 0.125, 0.06), 0.6)
    parts = [(box((0.9, 3.2, 1.6), (half - 0.6, -0.5, floor + 1.0), 0.03), teak.material)]
    for k in range(3):
        at = (half - 1.06, -1.54 + 1.04 * k, floor + 1.0)
        parts.append((box((0.03, 0.98, 1.4), at, 0.012), teak.material))
        parts.append((box((0.05, 0.05, 0.3), (at[0] - 0.03, at[1] + 0.38, at[2]), 0.015), white.material))
    add_object("sideboard", parts)


def add_pictures(half: float) -> None:
    """Framed blobs of colour, one or two on each wall."""
    frame = shapes.Shader("frame", (0.05, 0.035, 0.025), 0.4)
    spots = [
        (0, 2.9, -0.2, 1.3, 1.0),
        (90, -1.6, -0.2, 1.4, 1.1),
        (90, 1.2, -0.3, 1.0, 1.3),
        (180, 0.3, -0.3, 2.0, 1.1),
        (270, -1.6, -0.2, 1.1, 1.3),
        (270, 1.4, -0.3, 1.6, 1.0),
    ]
    for k, (turn, along, z, wide, high) in enumerate(spots):
        art = shapes.Shader(f"picture {k}", roughness=0.6)
        hue = 0.15 * math.sin(2.1 * k)
        stops = [
            (0.35, (0.55 + hue, 0.5, 0.42)),
            (0.48, (0.12, 0.2 + hue, 0.3)),
            (0.6, (0.7, 0.42, 0.2 + hue)),
        ]
        art.set("Base Color", art.ramp(art.noise(1.6, 3, distortion=0.4 * k), stops))
        parts = [
            (shapes.box((0.06, wide + 0.16, high + 0.16), (0, 0, 0), 0.015), frame.material),
            (shapes.box((0.02, wide, high), (-0.03, 0, 0)), art.material),
        ]
        obj = add_object(f"picture {k}", parts)
        c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        x, y = half - 0.09, along
        obj.location = (c * x - s * y, s * x + c * y, z)
        obj.rotation_euler = (0, 0, math.radians(turn))


def build_table() -> None:
    top = shapes.wood("table", (0.20, 0.098, 0.042), (0.46, 0.27, 0.135), 0.33, roughness=0.36)
    parts = [(shapes.box((2.7, 2.1, 0.09), (0, 0, -0.045), 0.02), top.material)]
    for sx in (-1, 1):
        for sy in (-1, 1):
            parts.append((shapes.box((0.16, 0.16, 2.12), (sx * 1.2, sy * 0.9, -1.14), 0.02), top.material))
    add_object("wooden table", parts)


def build_light() -> None:
    """An open ceiling under a soft sky, one large window to the side, one weak fill opposite."""
    world = bpy.data.worlds.new("sky")
    bpy.context.scene.world = world
    world.use_nodes = True
    background = world.node_tree.nodes["Background"]
    background.inputs["Color"].default_value = (0.86, 0.92, 1.0, 1.0)
    background.inputs["Strength"].default_value = 0.5
    for at, size, power, color in (
        ((-3.4, -1.8, 4.2), (2.4, 2.4), 400.0, (1.0, 0.93, 0.83)),
        ((3.6, 2.8, 3.6), (2.0, 1.4), 70.0, (0.85, 0.92, 1.0)),
    ):
        light = bpy.data.lights.new("window", "AREA")
        light.shape, light.size, light.size_y, light.energy, light.color = "RECTANGLE", *size, power, color
        obj = bpy.data.objects.new("window", light)
        obj.location = at
        obj.rotation_euler = (-Vector(at)).to_track_quat("-Z", "Y").to_euler()
        obj.visible_camera = False
        bpy.context.scene.collection.objects.link(obj)


def build() -> None:
    bpy.ops.wm.read_factory_settings(use_empty=True)
    build_room()
    build_table()
    for name, (x, y, turn, scale) in LAYOUT.items():
        obj = add_object(name, OBJECTS[name]())
        obj.location = (x, y, 0.0)
        obj.scale = (scale,) * 3
        obj.rotation_euler = (0, 0, math.radians(turn))
    build_light()
