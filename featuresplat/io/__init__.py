"""Files in and out: one file, one format.

Public names, each in the module that its noun suggests:

- ``formats``: ``load_gaussians``, ``save_gaussians``: the file's ending chooses the format.
- ``ply``: ``read_ply``, ``write_ply``, ``read_point_cloud``, ``GaussianFile``; ``compressed_ply``, ``splat``,
  ``spz``.
- ``scene_folder``: ``read_scene_folder``, ``write_scene_folder``, ``SceneFolder``; ``cameras``:
  ``cameras.json``.
- ``checkpoint``: ``save_checkpoint``, ``load_checkpoint``, ``latest_checkpoint``, ``prune_checkpoints``;
  ``rng_state``: ``capture_rng``, ``restore_rng``; ``tensors``: named tensors in a safetensors file.
- ``images``: ``read_image``, ``write_image``, ``resize_area``; ``video``: ``write_video``; ``colormap``.
- ``atomic``: ``atomic_path`` and its short forms; ``safe_paths``: ``inside``.
"""
