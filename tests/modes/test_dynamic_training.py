"""Training of a small film: nodes and HexPlane beat a still scene where things move; resumed is uninterrupted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from featuresplat import raster
from featuresplat.config import TrainConfig, load_config
from featuresplat.errors import FeaturesplatError
from featuresplat.modes import dynamic
from featuresplat.modes._motion.finished import moves
from featuresplat.modes._motion.trace import carry
from featuresplat.priors.depth import load_with_priors
from featuresplat.scene import Scene
from featuresplat.trainer import Trainer

pytest.importorskip("cv2")
WIDTH, HEIGHT, FRAMES = 80, 60, 12
K = torch.tensor([[80.0, 0, 40], [0, 80, 30], [0, 0, 1]])
STEPS = 90


def pose(x: float) -> torch.Tensor:
    out = torch.eye(4)
    out[0, 3] = -x
    return out


def world(t: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Means [N, 3], colours [N, 3], which move: a wall, and a card in front of it that slides down as t grows."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.meshgrid(torch.arange(-40, 41) * 0.08, torch.arange(-30, 31) * 0.08, indexing="xy")
    wall = torch.stack([x, y, torch.full_like(x, 4.0)], -1).reshape(-1, 3)
    u, v = torch.meshgrid(torch.arange(-8, 9) * 0.04, torch.arange(-8, 9) * 0.04, indexing="xy")
    card = torch.stack([u - 0.2, v - 0.35 + 0.7 * t, torch.full_like(u, 2.5)], -1).reshape(-1, 3)
    colors = torch.cat([0.25 + 0.4 * torch.rand(len(wall), 3, generator=g), torch.rand(len(card), 3, generator=g)])
    return torch.cat([wall, card]), colors, torch.arange(len(wall) + len(card)) >= len(wall)


def photograph(t: float, x: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 [H, W, 3], depth [H, W], where the card is."""
    means, colors, card = world(t)
    size = torch.where(card, 0.022, 0.045)[:, None].expand(-1, 3)
    quats = torch.zeros(len(means), 4)
    quats[:, 0] = 1
    out = raster.rasterize(
        means, quats, size, torch.full((len(means),), 0.97), colors, pose(x)[None], K[None], WIDTH, HEIGHT,
        features=card.float()[:, None],
    )  # fmt: skip
    assert out.rgb is not None
    assert out.features is not None
    rgb = (out.rgb[0].clamp(0, 1) * 255).round().byte().numpy()
    return rgb, out.depth[0, ..., 0].numpy(), out.features[0, ..., 0].numpy() > 0.5


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """A scene folder: 12 frames of a camera that slides along x, six held-out views from the side; depth beside it."""
    root = tmp_path_factory.mktemp("film")
    (root / "images").mkdir()
    (root / "depth").mkdir()
    flip = np.diag([1.0, -1, -1, 1])
    for part, count, aside in (("train", FRAMES, 0.0), ("test", 6, 0.5)):
        frames = []
        for k in range(count):
            t = k / (FRAMES - 1) if part == "train" else 2 * k / (FRAMES - 1)
            x = -0.15 + 0.3 * t + aside
            rgb, depth, _ = photograph(t, x)
            Image.fromarray(rgb).save(root / f"images/{part}_{k:02d}.png")
            np.save(root / f"depth/{part}_{k:02d}.npy", depth)
            matrix = np.linalg.inv(pose(x).double().numpy()) @ flip
            frames.append({"file_path": f"images/{part}_{k:02d}.png", "transform_matrix": matrix.tolist(), "time": t})
        meta = {"fl_x": 80, "fl_y": 80, "cx": 40, "cy": 30, "w": WIDTH, "h": HEIGHT, "frames": frames}
        (root / f"transforms_{part}.json").write_text(json.dumps(meta))
    points, colors, _ = world(0.0)
    few = torch.randperm(len(points), generator=torch.Generator().manual_seed(1))[:900]
    write_points(root / "points3d.ply", points[few], colors[few])
    return root


def write_points(path: Path, xyz: torch.Tensor, rgb: torch.Tensor) -> None:
    """ASCII PLY; without start points a plane sweep would look for some, which takes its time."""
    head = "ply\nformat ascii 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\n"
    head += "property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n"
    rows = [
        " ".join([*(f"{v:.6f}" for v in p), *(str(int(255 * v)) for v in c)])
        for p, c in zip(xyz.tolist(), rgb.tolist(), strict=True)
    ]
    path.write_text(head.format(len(rows)) + "\n".join(rows) + "\n")


def config(film: Path, out: Path, **changes) -> TrainConfig:
    base = load_config("dynamic")
    base.model.budget, base.model.sh_degree, base.dynamic.nodes, base.dynamic.fit_steps = 6000, 0, 30, 30
    base.priors.depth = film / "depth"
    base.densify.every = 30
    own = {"steps": STEPS, "coarse_to_fine": (), "out": out, "report": False, "seed": 1, "device": "cpu"}
    return replace(base, **own | changes)


def trained(film: Path, out: Path, **changes) -> Scene:
    trainer = Trainer(film, config(film, out, **changes), progress=False)
    for _ in range(trainer.config.steps):
        trainer.step()
    return trainer.scene()


def moving_error(scene: Scene) -> float:
    """Mean squared error over the card's pixels in the held-out views."""
    total, count = 0.0, 0
    for k in range(6):
        t = 2 * k / (FRAMES - 1)
        rgb, _, card = photograph(t, -0.15 + 0.3 * t + 0.5)
        view = scene.cameras[list(scene.cameras.names).index(f"test_{k:02d}.png")]
        out = scene.render(view).rgb
        assert out is not None
        off = (out[0].clamp(0, 1).numpy() - rgb / 255.0)[card]
        total, count = total + float((off**2).sum()), count + off.size
    return total / count


@pytest.fixture(scope="module")
def runs(film, tmp_path_factory) -> dict[str, Scene]:
    out = tmp_path_factory.mktemp("runs")
    return {mode: trained(film, out / mode, mode=mode) for mode in ("static", "dynamic", "hexplane")}


def test_nodes_beat_a_still_scene_where_things_move(runs):
    errors = {mode: moving_error(scene) for mode, scene in runs.items()}
    assert errors["dynamic"] < 0.25 * errors["static"], errors
    assert errors["dynamic"] < errors["hexplane"], errors


def test_the_card_moves_and_the_wall_does_not(runs):
    scene = runs["dynamic"]
    g, moving = scene.at(0.0), moves(scene)
    shows = g.opacities > 0.3
    # The card lies at depth 2.5, the wall at 4.
    assert float((g.means[moving & shows, 2] - 2.5).abs().median()) < 0.1
    assert float((g.means[~moving & shows, 2] < 3.2).float().mean()) < 0.02
    points = torch.tensor([[-0.2, -0.35, 2.5], [-0.1, -0.3, 2.5], [0.8, 0.5, 4.0]])
    paths = carry(scene, points, 0.0, [0.5, 1.0])
    assert float((paths[:2, 1] - points[:2] - torch.tensor([0, 0.7, 0])).abs().max()) < 0.08
    assert torch.allclose(paths[2, 1], points[2], atol=1e-5)


def test_it_comes_back_from_disk_as_it_was(runs, tmp_path):
    for mode in ("dynamic", "hexplane"):
        scene = runs[mode]
        scene.save(tmp_path / mode)
        again = Scene.load(tmp_path / mode)
        view = scene.cameras[0]
        a, b = scene.render(view).rgb, again.render(view).rgb
        assert a is not None
        assert b is not None
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("mode", ["dynamic", "hexplane"])
def test_a_resumed_run_is_the_uninterrupted_one(film, tmp_path, mode):
    """Through a choice of followers, new nodes and densification, which lie between."""
    changes = {"mode": mode, "steps": 24}
    dynamic_refresh = dynamic.REFRESH
    dynamic.REFRESH = 5
    try:
        whole = trained(film, tmp_path / "whole", **changes)
        first = Trainer(film, config(film, tmp_path / "parts", **changes), progress=False)
        for _ in range(9):
            first.step()
        first.save_checkpoint()
        second = Trainer(film, config(film, tmp_path / "parts", resume=True, **changes), progress=False)
        for _ in range(24 - 9):
            second.step()
    finally:
        dynamic.REFRESH = dynamic_refresh
    parts = second.scene()
    for name, value in whole.gaussians.tensors().items():
        assert torch.equal(value, parts.gaussians.tensors()[name]), name
    for name, value in whole.mode_state.items():
        assert torch.equal(value, parts.mode_state[name]), name


def test_without_depth_or_tracks_it_trains_too(film, tmp_path):
    made = config(film, tmp_path / "run", steps=12)
    made.priors.depth = None
    trainer = Trainer(film, made, progress=False)
    for _ in range(12):
        trainer.step()
    assert torch.isfinite(trainer.scene().gaussians.means).all()


def test_tracks_from_a_file(film, tmp_path):
    means, _, card = world(0.0)
    start = means[card][::5]
    times = torch.linspace(0, 1, FRAMES)
    xyz = start[:, None] + torch.tensor([0, 0.7, 0]) * times[:, None]
    np.savez(tmp_path / "tracks.npz", xyz=xyz.numpy())
    made = config(film, tmp_path / "run", steps=4)
    made.priors.tracks = tmp_path / "tracks.npz"
    trainer = Trainer(film, made, progress=False)
    paths = carry(trainer.scene(), start[:10], 0.0, [1.0])
    assert float((paths[:, 0] - start[:10] - torch.tensor([0, 0.7, 0])).norm(dim=1).median()) < 0.03


def test_several_cameras_at_once_need_no_tracks(film, tmp_path):
    """Two frames share a time: no film, so everything may move, by nodes that start at rest."""
    meta = json.loads((film / "transforms_train.json").read_text())
    for k, frame in enumerate(meta["frames"]):
        frame["time"] = (k // 2) / 5
        frame["file_path"] = str(Path(frame["file_path"]).name)
    (tmp_path / "transforms.json").write_text(json.dumps(meta))
    for k in range(FRAMES):
        (tmp_path / f"train_{k:02d}.png").write_bytes((film / f"images/train_{k:02d}.png").read_bytes())
    (tmp_path / "points3d.ply").write_bytes((film / "points3d.ply").read_bytes())
    made = config(film, tmp_path / "run", steps=5)
    made.priors.depth, made.data.split = None, "all"
    trainer = Trainer(tmp_path, made, progress=False)
    for _ in range(5):
        trainer.step()
    scene = trainer.scene()
    assert bool(moves(scene).all())
    assert scene.mode_state["nodes.times"].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])


def edited(film: Path, folder: Path, change) -> Path:
    folder.mkdir()
    (folder / "images").symlink_to(film / "images")
    (folder / "points3d.ply").symlink_to(film / "points3d.ply")
    for part in ("train", "test"):
        meta = json.loads((film / f"transforms_{part}.json").read_text())
        change(meta["frames"])
        (folder / f"transforms_{part}.json").write_text(json.dumps(meta))
    return folder


def without_times(frames):
    for frame in frames:
        del frame["time"]


def one_without(frames):
    del frames[0]["time"]


def all_at_once(frames):
    for frame in frames:
        frame["time"] = 0.5


def in_seconds(frames):
    """Of one of two cameras: the other's are right."""
    for frame in frames[::2]:
        frame["time"] *= 24.0


def as_text(frames):
    frames[0]["time"] = "soon"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_times, "no `time`"),
        (one_without, "have no `time`"),
        (all_at_once, "all at one time"),
        (in_seconds, r"expected 0\.\.1"),
        (as_text, "time"),
    ],
)
def test_bad_times_are_named(film, tmp_path, change, said):
    scene = edited(film, tmp_path / "scene", change)
    with pytest.raises(FeaturesplatError, match=said):
        Trainer(scene, config(film, tmp_path / "run"), progress=False)


@pytest.mark.parametrize(("change", "said"), [(without_times, "no `time`"), (in_seconds, r"expected 0\.\.1")])
def test_hexplane_names_bad_times_too(film, tmp_path, change, said):
    scene = edited(film, tmp_path / "scene", change)
    with pytest.raises(FeaturesplatError, match=said):
        Trainer(scene, config(film, tmp_path / "run", mode="hexplane"), progress=False)


def test_one_frame_is_no_film(film, tmp_path):
    scene = edited(film, tmp_path / "scene", lambda frames: frames.__delitem__(slice(1, None)))
    with pytest.raises(FeaturesplatError, match="nothing can move"):
        Trainer(scene, config(film, tmp_path / "run"), progress=False)


def test_two_cameras_whose_clocks_tick_apart(film, tmp_path):
    """The second camera's frames lie between those of the first, from another side: no film, but all times count."""
    meta, aside = (json.loads((film / f"transforms_{part}.json").read_text()) for part in ("train", "test"))
    both = meta["frames"][::2] + aside["frames"]
    for k, frame in enumerate(both):
        frame["time"] = (k % 6) / 5.5 + (0.04 if k >= 6 else 0.0)
    (tmp_path / "transforms.json").write_text(json.dumps(meta | {"frames": both}))
    (tmp_path / "images").symlink_to(film / "images")
    (tmp_path / "points3d.ply").symlink_to(film / "points3d.ply")
    made = config(film, tmp_path / "run", steps=3)
    made.priors.depth, made.data.split = None, "all"
    trainer = Trainer(tmp_path, made, progress=False)
    for _ in range(3):
        trainer.step()
    scene = trainer.scene()
    assert len(scene.mode_state["nodes.times"]) == 12
    assert bool(moves(scene).all())


def test_unordered_times_are_put_in_order(film, tmp_path):
    """The same film with its files' names, and so the order of its frames, turned round."""

    def backwards(frames):
        frames.reverse()

    scene = edited(film, tmp_path / "scene", backwards)
    trainer = Trainer(scene, config(film, tmp_path / "run", steps=2), progress=False)
    times = trainer.scene().mode_state["nodes.times"]
    assert bool((times[1:] > times[:-1]).all())


def test_depth_maps_of_another_shape_and_none_at_all(film, tmp_path):
    made = config(film, tmp_path / "run")
    made.priors.depth = tmp_path / "maps"
    (tmp_path / "maps").mkdir()
    with pytest.raises(FeaturesplatError, match="depth map for none"):
        Trainer(film, made, progress=False)
    for k in range(FRAMES):
        np.save(tmp_path / f"maps/train_{k:02d}.npy", np.ones((50, 50), np.float32))
    with pytest.raises(FeaturesplatError, match="proportions"):
        Trainer(film, made, progress=False)


def test_relative_depth_needs_start_points(film, tmp_path):
    made = config(film, tmp_path / "run")
    made.priors.depth_kind = "disparity"
    scene = edited(film, tmp_path / "scene", lambda frames: None)
    (scene / "points3d.ply").unlink()
    with pytest.raises(FeaturesplatError, match="start points"):
        Trainer(scene, made, progress=False)


@pytest.mark.parametrize("kind", ["relative", "disparity"])
def test_relative_depth_is_brought_to_the_scene_by_its_points(film, tmp_path, kind):
    """Maps that are right up to a factor and an offset per frame become metric again."""
    (tmp_path / "maps").mkdir()
    for k in range(FRAMES):
        depth = np.load(film / f"depth/train_{k:02d}.npy")
        value = (1 / depth if kind == "disparity" else depth) * (0.5 + 0.1 * k) + 0.3
        np.save(tmp_path / f"maps/train_{k:02d}.npy", np.where(depth > 0, value, 0).astype(np.float32))
    made = config(film, tmp_path / "run")
    made.priors.depth, made.priors.depth_kind = tmp_path / "maps", kind
    data = load_with_priors(film, made)
    for i in data.train[::4]:
        truth = np.load(film / f"depth/{data.cameras.names[i][:-4]}.npy")
        found = data.depth(i)
        assert found is not None
        assert float(np.median(np.abs(found.numpy() - truth)[truth > 0])) < 0.05


def test_hexplane_wants_four_sizes(film, tmp_path):
    made = config(film, tmp_path / "run", mode="hexplane")
    made.dynamic.grid = (8, 8)
    with pytest.raises(FeaturesplatError, match="four sizes"):
        Trainer(film, made, progress=False)
