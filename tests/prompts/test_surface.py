"""The surface that a camera sees: whole, at a glance, and at a few pixels."""

from __future__ import annotations

import numpy as np

from featuresplat.prompts.surface import glance, met, surface, unproject


def test_a_glance_sees_the_surface(world):
    scene, _ = world
    camera, settings = scene.cameras[0], scene.raster_settings()
    exact = surface(scene.gaussians, camera, settings)
    quick, colors = glance(scene.gaussians, camera, settings)
    there = exact.weight > 0.9
    assert quick.depth.shape == exact.depth.shape
    error = np.abs(quick.depth - exact.depth)[there] / exact.depth[there]
    assert np.quantile(error, 0.9) < 0.02
    assert (quick.ids == exact.ids)[there].mean() > 0.5
    assert np.array_equal(quick.solid, exact.solid)
    assert bool((quick.weight <= exact.weight + 1e-4).all())
    rgb = scene.render(camera).rgb
    assert rgb is not None
    assert np.abs(colors - rgb[0].numpy())[there].mean() < 0.05
    all_of_them, _ = glance(scene.gaussians, camera, settings, most=64)
    # Where half of the weight is met within rounding, either of two neighbours is.
    assert (all_of_them.ids == exact.ids)[there].mean() > 0.999


def test_a_few_pixels_are_as_the_whole_surface(world):
    scene, _ = world
    camera, settings = scene.cameras[3], scene.raster_settings()
    whole = surface(scene.gaussians, camera, settings)
    places = unproject(whole.depth, camera)
    pixels = np.random.default_rng(0).uniform([0, 0], [camera.width, camera.height], (40, 2))
    columns, rows = pixels.astype(int).T
    depths, found = met(scene.gaussians, camera, pixels, settings)
    there = whole.weight[rows, columns] > 0.1
    assert 10 < there.sum() < 40
    assert np.array_equal(depths > 0, there)
    # Half of the weight may be met one neighbour sooner or later, by rounding.
    close = np.abs(depths - whole.depth[rows, columns]) <= 1e-4
    assert close[there].mean() > 0.9
    assert np.abs(found - places[rows, columns])[there & close].max() < 1e-3
