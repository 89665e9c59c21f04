"""What a reader hands over: frames as they lie on disk, before anything is decoded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.types import PointCloud


@dataclass(frozen=True)
class Lens:
    """A camera's intrinsics, in pixels of an image of ``width`` x ``height``; pixel centres at +0.5.

    With normalised coordinates (x, y) = (X/Z, Y/Z) and r^2 = x^2 + y^2, the perspective lens is

        x' = x (1 + n1 r^2 + n2 r^4 + n3 r^6 + n4 r^8) / (1 + d1 r^2 + d2 r^4 + d3 r^6) + 2 p1 x y + p2 (r^2 + 2 x^2)

    and likewise for y with p1 (r^2 + 2 y^2) + 2 p2 x y (Brown 1966, as OpenCV documents it). The fisheye lens
    (Kannala and Brandt 2006) is x' = x theta_d / r with theta = atan r and
    theta_d = theta (1 + n1 theta^2 + n2 theta^4 + n3 theta^6 + n4 theta^8).

    Attributes:
        numerator: n1 .. n4.
        denominator: d1 .. d3, perspective only.
        tangential: p1, p2, perspective only.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    numerator: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    denominator: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tangential: tuple[float, float] = (0.0, 0.0)
    fisheye: bool = False

    @property
    def pinhole(self) -> bool:
        """Nothing to undistort."""
        return not self.fisheye and not any(self.numerator + self.denominator + self.tangential)

    def resized(self, width: int, height: int) -> Lens:
        """The same lens over an image of another size."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self, width=width, height=height, fx=self.fx * sx, fy=self.fy * sy, cx=self.cx * sx, cy=self.cy * sy
        )

    def matrix(self) -> np.ndarray:
        """[3, 3] float64."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    def check(self, where: str) -> Lens:
        """Itself.

        Raises:
            FeaturesplatError: a size below 1, a focal length that is not positive, or a number that is not finite.
        """
        numbers = (self.fx, self.fy, self.cx, self.cy, *self.numerator, *self.denominator, *self.tangential)
        good = all(math.isfinite(v) for v in numbers) and min(self.fx, self.fy) > 0 and min(self.width, self.height) > 0
        if not good:
            raise FeaturesplatError(
                f"{where}: expected sizes and focal lengths above 0, all finite, got {self.width}x{self.height}, "
                f"fx {self.fx:g}, fy {self.fy:g}, cx {self.cx:g}, cy {self.cy:g}.",
                "Mend the intrinsics of that camera.",
            )
        return self


@dataclass
class Frame:
    """One photograph.

    Attributes:
        image_path: the file.
        name: relative to the folder of images, forward slashes.
        viewmat: [4, 4] float64 world-to-camera, OpenCV axes.
        lens: intrinsics for the size that they were made for, which need not be the file's; None asks for a
            pinhole from ``angle_x`` and the file's size.
        angle_x: horizontal field of view in radians, where there is no lens.
        mask_path, depth_path: files or None.
        depth_scale: scene units per step of an integer depth map.
        time: in 0..1 or None.
        split: "train", "test" or None where the data does not say.
        alpha: reads the opacity, uint8 [H, W] in the file's size, where it does not lie in the photograph itself.
    """

    image_path: Path
    name: str
    viewmat: np.ndarray
    lens: Lens | None
    angle_x: float = 0.0
    mask_path: Path | None = None
    depth_path: Path | None = None
    depth_scale: float = 1e-3
    time: float | None = None
    split: str | None = None
    alpha: Callable[[], Tensor] | None = None


@dataclass
class Recording:
    """All frames of one input.

    Attributes:
        frames: in any order.
        points: start points in the world frame, or None.
        own_split: the frames' ``split`` says which are held out; frames with None are left out.
        images: the folder that names are relative to (a test.txt is looked for there, too).
    """

    frames: list[Frame]
    points: PointCloud | None = None
    own_split: bool = False
    images: Path | None = None


def rigid(matrix: np.ndarray, where: str) -> np.ndarray:
    """[4, 4] float64 with an exact rotation: the nearest to one that is rounded a little.

    Raises:
        FeaturesplatError: another shape, NaN, mirrored, or no rotation within 1 %.
    """
    hint = "Poses are a rotation and a translation; mend or remove that frame."
    if matrix.shape not in ((3, 4), (4, 4)):
        raise FeaturesplatError(f"{where}: expected a pose of 4x4 numbers, got {list(matrix.shape)}.", hint)
    if not np.isfinite(matrix).all():
        raise FeaturesplatError(f"{where}: the pose holds NaN or infinite numbers.", hint)
    rotation = matrix[:3, :3]
    error = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if error > 1e-2 or np.linalg.det(rotation) < 0:
        what = "is mirrored" if error <= 1e-2 else f"is not rigid (its rotation is off by {error:.2g})"
        raise FeaturesplatError(f"{where}: the pose {what}.", hint)
    u, _, vt = np.linalg.svd(rotation)
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = u @ vt, matrix[:3, 3]
    return out


def find_mask(masks: Path, name: str) -> Path | None:
    """``masks/x.png`` or ``masks/x.jpg.png`` of the image ``x.jpg``; folders of label masks are none."""
    for candidate in (masks / Path(name).with_suffix(".png"), masks / f"{name}.png"):
        if candidate.is_file():
            return candidate
    return None


def check_images(frames: list[Frame], where: str) -> None:
    """
    Raises:
        FeaturesplatError: no frames, or images that do not exist: names the first and says how many.
    """
    if not frames:
        raise FeaturesplatError(
            f"{where}: no image is registered.", "Structure from motion failed there; run it again with more overlap."
        )
    missing = [f for f in frames if not f.image_path.is_file()]
    if missing:
        raise FeaturesplatError(
            f"{where}: {len(missing)} of {len(frames)} images are missing, the first is {missing[0].image_path}.",
            "Put them where the file says, or remove their entries.",
        )
