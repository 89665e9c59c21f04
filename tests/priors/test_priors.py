"""What moves, where points go, and how deep it is: on films of known motion, and from files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from featuresplat.errors import FeaturesplatError
from featuresplat.priors.depth import robust_line
from featuresplat.priors.film import Film, consistent, film_of, sample, warp
from featuresplat.priors.motion import moving_masks
from featuresplat.priors.still import agreement
from featuresplat.priors.tracks import read_tracks, track
from featuresplat.priors.unposed import camera_way, epipolar_gap, moving

cv2 = pytest.importorskip("cv2")
WIDTH, HEIGHT, FRAMES = 96, 72, 14
K = np.array([[90.0, 0, 48], [0, 90, 36], [0, 0, 1]])


def texture(seed: int, shape=(300, 400)) -> np.ndarray:
    """Smooth noise, uint8 [H, W, 3]."""
    noise = np.random.default_rng(seed).uniform(0, 255, (*shape, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 1.6)
    soft = (soft - soft.mean()) / soft.std() * 50 + 128
    return soft.clip(0, 255).astype(np.uint8)


def plane(t: int, image: np.ndarray, depth: float, camera_x: float, offset=(0.0, 0.0)) -> np.ndarray:
    """A fronto-parallel textured plane at a depth, 100 texture pixels a unit, seen by a camera at (camera_x, 0, 0)."""
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    wx = (x - K[0, 2]) / K[0, 0] * depth + camera_x - offset[0]
    wy = (y - K[1, 2]) / K[1, 1] * depth - offset[1]
    u, v = wx * 100 + image.shape[1] / 2, wy * 100 + image.shape[0] / 2
    return cv2.remap(image, u.astype(np.float32), v.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def make_film(moves: float = 0.06, with_depth: bool = False, pan: float = 0.02) -> tuple[Film, np.ndarray]:
    """A camera that slides along x past a far wall; a small square card in front of it slides up by ``moves`` a frame.

    Returns the film and where the card is, bool [T, H, W].
    """
    wall, card = texture(1), texture(2)
    images, truth, depths, poses = [], [], [], []
    for t in range(FRAMES):
        at = pan * t
        centre = np.array([0.05, 0.35 - moves * t])  # world place of the card, at depth 2
        x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
        wx = (x - K[0, 2]) / K[0, 0] * 2 + at - centre[0]
        wy = (y - K[1, 2]) / K[1, 1] * 2 - centre[1]
        inside = (np.abs(wx) < 0.22) & (np.abs(wy) < 0.22)
        back, front = plane(t, wall, 4.0, at), plane(t, card, 2.0, at, tuple(centre))
        images.append(np.where(inside[..., None], front, back))
        truth.append(inside)
        depths.append(np.where(inside, 2.0, 4.0))
        pose = np.eye(4)
        pose[0, 3] = -at
        poses.append(pose)
    film = Film(
        indices=list(range(FRAMES)),
        times=np.linspace(0, 1, FRAMES),
        images=np.stack(images),
        viewmats=np.stack(poses),
        Ks=np.repeat(K[None], FRAMES, 0),
        depth=np.stack(depths).astype(np.float32) if with_depth else None,
        names=[f"f{t:02d}.png" for t in range(FRAMES)],
        full_size=(2 * WIDTH, 2 * HEIGHT),
    )
    return film, np.stack(truth)


@pytest.fixture(scope="module")
def slide():
    film, truth = make_film()
    film.flows, film.steady  # noqa: B018
    return film, truth


def overlap(found: np.ndarray, truth: np.ndarray) -> float:
    return float((found & truth).sum() / (found | truth).sum())


def test_sampling_and_warping_by_hand():
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    # The centre of pixel (column 1, row 2) is (1.5, 2.5).
    assert sample(image, np.array([[1.5, 2.5], [2.0, 0.5]])).tolist() == [9.0, 1.5]
    shifted = warp(image, np.full((3, 4, 2), [1.0, 0.0], np.float32), outside=-1)
    assert shifted.tolist() == [[1, 2, 3, -1], [5, 6, 7, -1], [9, 10, 11, -1]]


def test_flow_is_consistent_where_it_leads_back():
    there, back = np.full((4, 6, 2), [1.0, 0], np.float32), np.full((4, 6, 2), [-1.0, 0], np.float32)
    good = consistent(there, back)
    assert good[:, :5].all()
    assert not good[:, 5].any()  # leads out of the picture
    assert not consistent(there, -5 * back).any()


def test_what_moves_is_found_by_its_epipolar_errors(slide):
    film, truth = slide
    masks = moving_masks(film)
    assert film.continuous
    assert overlap(masks, truth) > 0.5
    assert masks[truth].mean() > 0.8


def test_a_still_surface_explains_what_flow_drags_along(slide):
    film, truth = slide
    plain, better = moving_masks(film), moving_masks(film, reach=(1.5, 5.0))
    assert overlap(better, truth) > overlap(plain, truth) + 0.02
    assert overlap(better, truth) > 0.8
    assert better[truth].mean() > 0.8


def test_frames_agree_on_what_holds_still_alone(slide):
    film, truth = slide
    share = agreement(film, np.ones_like(truth), (1.5, 5.0))
    inner = np.stack([cv2.erode(m.astype(np.uint8), np.ones((5, 5))) > 0 for m in truth])
    outer = np.stack([cv2.dilate(m.astype(np.uint8), np.ones((5, 5))) == 0 for m in truth])
    outer[:, :, :20], outer[:, :, -20:] = False, False  # seen in few frames
    assert np.median(share[outer]) > 0.9
    assert np.quantile(share[inner], 0.9) < 0.45
    assert not agreement(film, np.zeros_like(truth), (1.5, 5.0)).any()


def test_what_moves_is_found_by_depth():
    film, truth = make_film(with_depth=True)
    assert overlap(moving_masks(film), truth) > 0.8


def test_nothing_moves_where_nothing_moves():
    film, _ = make_film(moves=0.0)
    assert moving_masks(film).mean() < 0.02


def test_without_poses_what_leaves_the_dominant_motion_moves(slide):
    film, truth = slide
    masks = moving(film)
    assert masks[truth].mean() > 0.6
    assert masks[~truth].mean() < 0.1


def test_a_standing_camera_is_noticed(slide):
    assert camera_way(slide[0]) > 0.35
    still, _ = make_film(pan=0.0)
    assert camera_way(still) < 0.1


def test_gap_to_the_epipolar_line_by_hand():
    """All slides along x, but one patch also moves up by 4: its gap is (0, -4)."""
    flow = np.zeros((60, 80, 2), np.float32)
    flow[..., 0] = np.random.default_rng(0).uniform(1, 8, (60, 80))  # parallax that no homography explains
    flow[20:30, 30:40, 1] = -4
    gap = epipolar_gap(flow, np.ones((60, 80), bool))
    assert np.abs(gap[25, 35] - [0, -4]).max() < 0.2
    assert np.abs(gap[50, 10]).max() < 0.2


def test_tracks_follow_the_card(slide):
    film, truth = slide
    tracks = track(film, truth)
    assert len(tracks) > 20
    long = tracks.visible.sum(1) >= 10
    assert long.sum() > 10
    ways = []
    for uv, visible in zip(tracks.uv[long], tracks.visible[long], strict=True):
        t = np.nonzero(visible)[0]
        ways.append((uv[t[-1]] - uv[t[0]]) / (t[-1] - t[0]))
    # Up by 0.06 units at depth 2 and left by the camera's 0.02: 2.7 and 0.9 pixels a frame.
    off = np.abs(np.array(ways) - [-0.9, -2.7]).max(1)
    assert np.median(off) < 0.15
    assert np.quantile(off, 0.9) < 0.8
    assert np.isnan(tracks.uv[~tracks.visible]).all()
    assert ((tracks.trust > 0) & (tracks.trust <= 1)).all()


def test_depth_under_tracks_is_unknown_at_jumps():
    film, truth = make_film(with_depth=True)
    tracks = track(film, truth)
    known = tracks.depth[tracks.visible]
    assert set(np.unique(known)) <= {0.0, 2.0}
    assert (known == 2).mean() > 0.5


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_tracks_from_a_file_in_pixels_of_the_photographs(tmp_path, slide):
    film = slide[0]
    uv = np.random.default_rng(0).uniform(20, 100, (5, FRAMES, 2))
    tracks = read_tracks(write(tmp_path / "t.npz", uv=uv), film)
    assert np.allclose(tracks.uv, uv / 2)  # the film is half the size
    assert tracks.visible.all()


def test_tracks_from_a_file_in_the_world(tmp_path, slide):
    film = slide[0]
    xyz = np.tile(np.array([0.1, 0.2, 3.0]), (2, FRAMES, 1))
    tracks = read_tracks(write(tmp_path / "t.npz", xyz=xyz), film)
    assert np.allclose(tracks.depth, 3)
    assert np.allclose(tracks.uv[0, 0], [48 + 90 * 0.1 / 3, 36 + 90 * 0.2 / 3])


def test_tracks_with_nan_are_used_as_far_as_they_go(tmp_path, slide):
    uv = np.full((3, FRAMES, 2), 30.0)
    uv[0, 4:8] = np.nan
    uv[1] = np.nan
    with pytest.warns(UserWarning, match="NaN"):
        tracks = read_tracks(write(tmp_path / "t.npz", uv=uv, visible=np.ones((3, FRAMES), bool)), slide[0])
    assert len(tracks) == 2
    assert tracks.visible[0].sum() == FRAMES - 4


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"uv": np.zeros((3, 5, 2))}, "5 frames"),
        ({"uv": np.zeros((3, FRAMES, 4))}, "expected uv"),
        ({"other": np.zeros(3)}, "no `uv` or `xyz`"),
        ({"uv": np.full((3, FRAMES, 2), np.nan)}, "no point"),
        ({"uv": np.zeros((3, FRAMES, 2)), "visible": np.ones((2, 2), bool)}, "visible"),
        ({"uv": np.zeros((3, FRAMES, 2)), "size": np.zeros(3)}, "size"),
    ],
)
def test_bad_tracks_are_named(tmp_path, slide, arrays, said):
    with pytest.raises(FeaturesplatError, match=said):
        read_tracks(write(tmp_path / "t.npz", **arrays), slide[0])


def test_a_file_that_is_no_tracks(tmp_path, slide):
    (tmp_path / "t.npz").write_text("hello")
    with pytest.raises(FeaturesplatError, match="tracks"):
        read_tracks(tmp_path / "t.npz", slide[0])
    with pytest.raises(FeaturesplatError, match="tracks"):
        read_tracks(tmp_path / "missing.npz", slide[0])


def test_flow_and_masks_from_files(tmp_path):
    from PIL import Image

    film, truth = make_film()
    film = replace(film, flow_folder=tmp_path)
    for name in film.names:
        np.save(tmp_path / f"{name[:-4]}.npy", np.full((2 * HEIGHT, 2 * WIDTH, 2), [4.0, -2.0], np.float32))
        np.save(tmp_path / f"{name[:-4]}_back.npy", np.full((2 * HEIGHT, 2 * WIDTH, 2), [-4.0, 2.0], np.float32))
        Image.fromarray(truth[0].astype(np.uint8) * 255).save(tmp_path / name)
    there, back = film.flows
    assert np.allclose(there, [2.0, -1.0])  # in pixels of the half size
    assert np.allclose(back, [-2.0, 1.0])
    assert np.array_equal(moving_masks(film, tmp_path)[3], truth[0])
    (tmp_path / film.names[2]).unlink()
    with pytest.raises(FeaturesplatError, match="no motion mask"):
        moving_masks(film, tmp_path)


def test_priors_of_another_shape_are_refused(tmp_path):
    from PIL import Image

    film, _ = make_film()
    for name in film.names:
        np.save(tmp_path / f"{name[:-4]}.npy", np.zeros((HEIGHT, HEIGHT, 2), np.float32))
        Image.new("L", (50, 50)).save(tmp_path / name)
    with pytest.raises(FeaturesplatError, match="proportions"):
        replace(film, flow_folder=tmp_path).flows  # noqa: B018
    with pytest.raises(FeaturesplatError, match="proportions"):
        moving_masks(film, tmp_path)


def test_a_line_through_points_with_outliers():
    rng = np.random.default_rng(1)
    x = rng.uniform(1, 5, 200)
    y = 2.5 * x - 0.7 + rng.normal(0, 0.01, 200)
    y[:70] += rng.uniform(1, 4, 70)
    a, b = robust_line(x, y)
    assert a == pytest.approx(2.5, abs=0.03)
    assert b == pytest.approx(-0.7, abs=0.08)


class Still:
    """As much of a Dataset as a film asks for."""

    def __init__(self, times):
        from featuresplat.types import Cameras

        count = 3
        eye, Ks = torch.eye(4).repeat(count, 1, 1), torch.from_numpy(K).float().repeat(count, 1, 1)
        self.cameras = Cameras(eye, Ks, WIDTH, HEIGHT, times, [f"{k}.png" for k in range(count)])
        self.train = [0, 1, 2]

    def image(self, i):
        return torch.full((HEIGHT, WIDTH, 3), i, dtype=torch.uint8)

    def depth(self, i):
        return None


def test_a_film_is_put_in_the_order_of_time():
    film = film_of(Still(torch.tensor([0.9, 0.1, 0.5])))  # pyright: ignore[reportArgumentType]
    assert film.indices == [1, 2, 0]
    assert film.images[:, 0, 0, 0].tolist() == [1, 2, 0]
    assert film.times.tolist() == pytest.approx([0.1, 0.5, 0.9])


@pytest.mark.parametrize(("times", "said"), [(None, "no `time`"), (torch.full((3,), 0.5), "all at one time")])
def test_without_times_nothing_moves(times, said):
    with pytest.raises(FeaturesplatError, match=said):
        film_of(Still(times))  # pyright: ignore[reportArgumentType]
