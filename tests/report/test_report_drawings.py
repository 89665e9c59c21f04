"""The drawings of a report: charts of the training, and where the cameras stood."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest
from report_data import cloud, ring

from featuresplat._report.data import ReportData
from featuresplat._report.layout import camera_layout
from featuresplat._report.page import to_html
from featuresplat._report.svg import line_chart, nice_ticks


def test_line_chart_is_wellformed_and_breaks_at_gaps():
    svg = line_chart("Loss & <more>", [("", [(0, 1.0), (10, 2.0), (20, None), (30, 3.0), (40, 4.0)], False)])
    root = ElementTree.fromstring(svg)
    path = next(e for e in root.iter("path") if "line" in e.attrib["class"])
    assert path.attrib["d"].count("M") == 2
    assert line_chart("none", [("", [(0, None), (1, float("nan"))], False)]) == ""
    ElementTree.fromstring(line_chart("one", [("", [(0, 5.0)], True)]))
    ElementTree.fromstring(line_chart("log", [("", [(0, 5.0), (1, 0.0), (2, -1.0), (3, 0.5)], False)], log=True))


def test_line_chart_goes_up_where_values_go_up():
    root = ElementTree.fromstring(line_chart("y", [("", [(0, 1.0), (100, 2.0)], False)]))
    path = next(e for e in root.iter("path") if "line" in e.attrib["class"]).attrib["d"]
    (x0, y0), (x1, y1) = ([float(v) for v in p.split()] for p in path[1:].split("L"))
    assert x1 > x0
    assert y1 < y0  # the SVG's y points down


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 7000, [0, 2000, 4000, 6000]), (17.2, 24.9, [18, 20, 22, 24]), (0, 1, [0, 0.5, 1]), (3, 3, [3])],
)
def test_nice_ticks(low, high, ticks):
    assert nice_ticks(low, high, 4) == pytest.approx(ticks)


def test_layout_has_up_as_third_axis():
    layout = camera_layout(ring(height=1.0), ["view_03.jpg", "gone.jpg"], cloud())
    assert layout is not None
    # The ring is horizontal and one unit above the origin; world y points down.
    assert np.allclose(layout.positions[:, 2], 1.0, atol=1e-6)
    assert np.allclose(np.linalg.norm(layout.positions[:, :2], axis=1), 2.0, atol=1e-6)
    # The mean of the corner directions is the optical axis: towards the origin, of length 1.
    axis = layout.corners.mean(axis=1)
    assert np.allclose(axis, -layout.positions / math.sqrt(5), atol=1e-6)
    # Image top is above image bottom.
    assert (layout.corners[:, 0, 2] > layout.corners[:, 3, 2]).all()
    assert layout.test == [k == 3 for k in range(12)]


def test_layout_is_not_mirrored():
    """Three cameras on an L: going around them counter-clockwise from above stays counter-clockwise."""
    cameras = ring(8)
    layout = camera_layout(cameras, [])
    assert layout is not None
    a, b = layout.positions[0, :2], layout.positions[1, :2]
    # From +x to +z with y down is clockwise about the axis -y (up): x cross z = -y, so counter-clockwise seen from up.
    assert a[0] * b[1] - a[1] * b[0] > 0


def test_layout_of_one_camera_and_of_none():
    layout = camera_layout(ring(1), [])
    assert layout is not None
    assert np.isfinite(layout.positions).all()
    assert "<svg" in to_html(ReportData("one", layout=layout))
    assert camera_layout(ring(1)[[]], []) is None
