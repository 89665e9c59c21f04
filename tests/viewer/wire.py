"""A browser without a browser: speaks viser's protocol, keeps what it is shown, and can type, press and look around."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import viser
import websockets
import zstandard
from PIL import Image
from websockets.sync.client import connect

PATIENCE = 240.0


def until(condition: Callable[[], Any], what: str = "", seconds: float = PATIENCE) -> Any:
    """Wait for a condition to hold; its value. Fails after a long time."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s for {what or condition}")
        time.sleep(0.01)


class WireBrowser:
    """One connection. ``size`` is the window's; the camera stands at ``position`` and looks at ``look_at``."""

    def __init__(
        self,
        port: int,
        position=(0.0, 0.0, -4.0),
        look_at=(0.0, 0.0, 0.0),
        up=(0.0, -1.0, 0.0),
        fov: float = 0.8,
        size: tuple[int, int] = (160, 120),
        storage: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        acknowledge: bool = True,
    ):
        self.size, self.fov = size, fov
        self.position, self.look_at, self.up = np.array(position), np.array(look_at), np.array(up)
        self.storage = {} if storage is None else storage
        self.acknowledge = acknowledge
        self.gui: dict[str, dict[str, Any]] = {}
        self.nodes: dict[str, dict[str, Any]] = {}
        self.notes: list[tuple[str, str]] = []
        self.downloads: dict[str, bytes] = {}
        self.images = 0
        self.image_bytes: bytes | None = None
        self.seen: list[str] = []
        self._parts: dict[str, dict] = {}
        self._changed = threading.Condition()
        self.socket = connect(
            f"ws://127.0.0.1:{port}",
            subprotocols=[websockets.Subprotocol(f"viser-v{viser.__version__}")],
            max_size=None,
            compression=None,
            additional_headers=headers,
        )
        self.send_camera()
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    # What a person does

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send(msgspec.msgpack.encode({"type": kind, **fields}))

    def send_camera(self) -> None:
        forward = self.look_at - self.position
        z = forward / np.linalg.norm(forward)
        x = np.cross(z, self.up)
        x = x / np.linalg.norm(x)
        y = np.cross(z, x)
        R = viser.transforms.SO3.from_matrix(np.stack([x, y, z], axis=1))
        self.send(
            "ViewerCameraMessage", wxyz=R.wxyz.tolist(), position=self.position.tolist(), fov=self.fov, near=0.01,
            far=1e3, image_height=self.size[1], image_width=self.size[0], look_at=self.look_at.tolist(),
            up_direction=self.up.tolist(),
        )  # fmt: skip

    def move(self, position=None, look_at=None) -> None:
        self.position = self.position if position is None else np.array(position, dtype=float)
        self.look_at = self.look_at if look_at is None else np.array(look_at, dtype=float)
        self.send_camera()

    def control(self, label: str, kind: str = "") -> dict[str, Any]:
        """The properties of the control with that label; waits for it."""

        def find():
            for uuid, part in list(self.gui.items()):
                if part.get("label") == label and kind in part["type"]:
                    return {**part, "uuid": uuid}
            return None

        return until(find, f"the control {label}")

    def set(self, label: str, value: Any) -> None:
        self.send("GuiUpdateMessage", uuid=self.control(label)["uuid"], updates={"value": value})

    def press(self, label: str) -> None:
        self.set(label, True)

    def click(self, u: float, v: float, modifier: str | None = None) -> None:
        self.send(
            "ScenePointerMessage", event_type="click", ray_origin=[0.0, 0.0, 0.0], ray_direction=[0.0, 0.0, 1.0],
            screen_pos=[[u, v]], modifier=modifier,
        )  # fmt: skip

    def drag_box(self, u0: float, v0: float, u1: float, v1: float) -> None:
        self.send(
            "ScenePointerMessage", event_type="rect-select", ray_origin=None, ray_direction=None,
            screen_pos=[[u0, v0], [u1, v1]], modifier=None,
        )  # fmt: skip

    # What a person sees

    @property
    def image(self) -> np.ndarray | None:
        """uint8 [H, W, 3], the picture behind the scene."""
        data = self.image_bytes
        return None if data is None else np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def labels(self) -> list[str]:
        return [part["label"] for part in list(self.gui.values()) if part.get("label")]

    def texts(self) -> str:
        """Everything that is written in notes, as HTML."""
        return "\n".join(part.get("content") or "" for part in list(self.gui.values()))

    def tabs(self) -> list[str]:
        return [label for part in list(self.gui.values()) for label in part.get("_tab_labels", ())]

    def said(self, words: str) -> bool:
        return any(words in f"{title} {body}" for title, body in list(self.notes))

    # The protocol

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.socket.close()
        self._thread.join(PATIENCE)

    def drop(self) -> None:
        """As when the line breaks: no goodbye."""
        with contextlib.suppress(OSError):
            self.socket.socket.shutdown(2)
        self._thread.join(PATIENCE)

    def _receive(self) -> None:
        zstd = zstandard.ZstdDecompressor()
        with contextlib.suppress(websockets.ConnectionClosed, OSError):
            for raw in self.socket:
                assert isinstance(raw, bytes)
                packed = int.from_bytes(raw[8:16], "little")
                window = msgspec.msgpack.decode(zstd.decompress(raw[16 : 16 + packed]))
                place = 16 + packed
                buffers = []
                for length in window["binaryBufferLengths"]:
                    place += (8 - place % 8) % 8
                    buffers.append(raw[place : place + length])
                    place += length
                for message in window["messages"]:
                    self._handle(message, buffers)

    def _handle(self, m: dict[str, Any], buffers: list[bytes]) -> None:
        kind = m["type"]
        self.seen.append(kind)
        if kind == "BackgroundImageMessage":
            data = m["rgb_data"]
            self.image_bytes = buffers[data["__binary_index"]] if isinstance(data, dict) else data
            self.images += self.image_bytes is not None
        elif kind == "LocalStorageGetItemRequestMessage":
            if self.acknowledge:
                self.send(
                    "LocalStorageGetItemResponseMessage", value=self.storage.get(m["key"]), error=None,
                    request_uuid=m["request_uuid"],
                )  # fmt: skip
        elif kind == "LocalStorageSetItemMessage":
            self.storage[m["key"]] = m["value"]
        elif kind == "NotificationShowMessage":
            self.notes.append((m["props"]["title"], m["props"]["body"]))
        elif kind == "GuiRemoveMessage":
            self.gui.pop(m["uuid"], None)
        elif kind == "GuiUpdateMessage":
            self.gui.get(m["uuid"], {}).update(m["updates"])
        elif kind.startswith("Gui") and "uuid" in m and "props" in m:
            self.gui[m["uuid"]] = {"type": kind, "value": m.get("value"), **m["props"]}
        elif kind == "RemoveSceneNodeMessage":
            self.nodes.pop(m["name"], None)
        elif kind == "SetSceneNodeVisibilityMessage":
            self.nodes.setdefault(m["name"], {})["visible"] = m["visible"]
        elif kind in ("SceneNodeUpdateMessage",):
            self._node(m["name"], m["updates"], buffers)
        elif "name" in m and "props" in m:
            self.nodes[m["name"]] = {"type": kind, "visible": True, "owner": m.get("owner", "")}
            self._node(m["name"], m["props"], buffers)
        elif kind.startswith("FileTransfer"):
            self._file(m, buffers)
        elif kind.startswith("SetCamera"):
            self._set_camera(kind, m)

    def _node(self, name: str, props: dict, buffers: list[bytes]) -> None:
        for key, value in props.items():
            if isinstance(value, dict) and "__binary_index" in value:
                value = buffers[value["__binary_index"]]
            self.nodes.setdefault(name, {})[key] = value

    def _file(self, m: dict[str, Any], buffers: list[bytes]) -> None:
        if m["type"] == "FileTransferStartDownload":
            self._parts[m["transfer_uuid"]] = {"name": m["filename"], "count": m["part_count"], "parts": {}}
        elif m["type"] == "FileTransferPart":
            content = m["content"]
            content = buffers[content["__binary_index"]] if isinstance(content, dict) else content
            state = self._parts[m["transfer_uuid"]]
            state["parts"][m["part_index"]] = content
            if len(state["parts"]) == state["count"]:
                self.downloads[state["name"]] = b"".join(state["parts"][i] for i in range(state["count"]))

    def _set_camera(self, kind: str, m: dict[str, Any]) -> None:
        if m.get("initial"):
            return  # tests say where they look from
        if kind == "SetCameraPositionMessage":
            self.look_at = self.look_at + np.array(m["position"]) - self.position
            self.position = np.array(m["position"])
        elif kind == "SetCameraLookAtMessage":
            self.look_at = np.array(m["look_at"])
        elif kind == "SetCameraUpDirectionMessage":
            self.up = np.array(m["position"])
        elif kind == "SetCameraFovMessage":
            self.fov = m["fov"]
        else:
            return
        with contextlib.suppress(websockets.ConnectionClosed):
            self.send_camera()
