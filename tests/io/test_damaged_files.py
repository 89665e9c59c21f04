"""Whatever bytes a file holds, reading it ends well or in a sentence: no crash, no huge allocation."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featuresplat.errors import FeaturesplatError
from featuresplat.io.checkpoint import load_checkpoint, save_checkpoint
from featuresplat.io.formats import load_gaussians, save_gaussians
from featuresplat.io.ply import read_point_cloud

POINTS = b"""ply
format ascii 1.0
element vertex 2
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
element face 0
property list uchar int vertex_indices
end_header
1 2 3 4 5 6
-1 2e3 .3 4 5 6
"""
# Where (as a share of the file), what goes in, and how much goes out.
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.binary(max_size=8) | st.sampled_from([b"9" * 12, b"-1", b"nan"]),
        st.integers(0, 40),
    ),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("name", ["g.ply", "g.compressed.ply", "g.splat", "g.spz", "1.safetensors", "points.ply"])
@given(edits=EDITS, header_only=st.booleans())
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_edited_file_is_read_or_refused(tmp_path, gaussians, name, edits, header_only):
    path, pristine = tmp_path / name, tmp_path / f"pristine.{name}"
    if not pristine.exists():
        if name == "points.ply":
            pristine.write_bytes(POINTS)
        elif name == "1.safetensors":
            save_checkpoint(pristine, {"a": torch.zeros(3), "b": {"c": torch.ones(2)}}, {"step": 1})
        else:
            save_gaussians(pristine, gaussians(20, 1))
    data = bytearray(pristine.read_bytes())
    for share, new, out in edits:
        at = int(share * (min(len(data), 500) if header_only else len(data)))
        data[at : at + out] = new
    path.write_bytes(data)
    read = {"points.ply": read_point_cloud, "1.safetensors": load_checkpoint}.get(name, load_gaussians)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = read(path)
        except FeaturesplatError:
            return
    if name not in ("points.ply", "1.safetensors"):
        assert all(t.isfinite().all() for t in result.gaussians.tensors().values())
