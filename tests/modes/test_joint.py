"""Joint training: features learn along, and geometry does not notice."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_training import small, write_scene

from featuresplat.config_fields import TeacherConfig
from featuresplat.errors import FeaturesplatError
from featuresplat.scene import Scene
from featuresplat.trainer import Trainer, train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight views, and maps [6, 8, 5] of one direction on the left and another on the right of each view."""
    folder = tmp_path_factory.mktemp("joint")
    write_scene(folder / "scene", range(0, 40, 5))
    (folder / "maps").mkdir()
    (folder / "maps" / "teacher.json").write_text(json.dumps({"name": "halves", "dim": 5}))
    values = np.zeros((6, 8, 5), np.float32)
    values[:, :4, 0], values[:, 4:, 3] = 1, 1
    for view in range(0, 40, 5):
        np.save(folder / "maps" / f"view_{view:03d}.npy", values)
    return folder


def config_of(data, out, steps=40, dim=0, mode="joint"):
    config = small(out, steps=steps, mode=mode, eval_views=0)
    config.data.downscale, config.field.dim = 1, dim
    config.teacher = TeacherConfig("precomputed", data / "maps")
    return config


def test_geometry_is_that_of_the_static_mode_to_the_bit(data, tmp_path):
    joint = train(data / "scene", config_of(data, tmp_path / "joint"), progress=False)
    static = train(data / "scene", config_of(data, tmp_path / "static", mode="static"), progress=False)
    for name, value in static.gaussians.tensors().items():
        assert torch.equal(joint.gaussians.tensors()[name], value), name
    name, field = joint.field()
    assert (name, field.dim, field.decoder, field.info["method"]) == ("precomputed", 5, None, "joint training")
    assert len(field) == len(joint.gaussians)
    assert float(field.codes.abs().max()) > 1e-3
    back = Scene.load(tmp_path / "joint")
    assert torch.equal(back.fields["precomputed"].codes, field.codes)
    assert back.render(back.cameras[0], features="precomputed").features is not None


@pytest.mark.parametrize("dim", [0, 2])
def test_the_features_approach_the_maps(data, tmp_path, dim):
    config = config_of(data, tmp_path / "r", steps=60, dim=dim)
    config.densify.strategy = "none"
    trainer = Trainer(data / "scene", config, progress=False)
    errors = []
    for _ in range(60):
        trainer.step()
        if trainer.step_index in (2, 60):
            scene = trainer.scene()
            view = scene.part("train")[0]
            features = scene.render(view, features="precomputed").features
            assert features is not None
            errors.append(float((scene.field()[1].decode(features)[0, ::10, ::10] - torch_maps()).abs().mean()))
    assert errors[1] < errors[0]
    if dim:
        assert scene.field()[1].decoder is not None


def test_the_decoder_is_where_the_codes_are(data, tmp_path):
    mode = Trainer(data / "scene", config_of(data, tmp_path / "r", dim=2), progress=False).mode
    for params in (mode.gaussian_params, mode.extra_params):
        params.update({k: torch.nn.Parameter(p.to("meta")) for k, p in params.items()})
    (field,) = mode.fields().values()
    assert field.decoder is not None
    assert {t.device.type for t in (field.codes, *field.decoder.parameters())} == {"meta"}


def torch_maps() -> torch.Tensor:
    values = torch.zeros(6, 8, 5)
    values[:, :4, 0], values[:, 4:, 3] = 1, 1
    return values


def test_a_resumed_joint_training_goes_on_bit_for_bit(data, tmp_path):
    whole = Trainer(data / "scene", config_of(data, tmp_path / "a", dim=2), progress=False)
    for _ in range(20):
        whole.step()
    first = Trainer(data / "scene", config_of(data, tmp_path / "b", dim=2), progress=False)
    for _ in range(10):
        first.step()
    first.save_checkpoint()
    config = config_of(data, tmp_path / "b", dim=2)
    config.resume = True
    second = Trainer(data / "scene", config, progress=False)
    for _ in range(10):
        second.step()
    one, two = whole.scene().field()[1], second.scene().field()[1]
    assert torch.equal(one.codes, two.codes)
    assert one.same_space(two)


def test_a_joint_training_needs_a_teacher(data, tmp_path):
    config = config_of(data, tmp_path / "r")
    config.teacher = TeacherConfig()
    with pytest.raises(FeaturesplatError, match="expected the name of one"):
        train(data / "scene", config, progress=False)
