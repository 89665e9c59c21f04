"""Feature fields: teachers' maps carried onto Gaussians.

- ``cache``: maps on disk, made once per image and teacher;
- ``maps``: the maps of a scene's training views, one at a time;
- ``lift``: closed forms, ``train``: codes and decoders by gradient, ``compact``: fewer bytes;
- ``distill``: all of it in one call; ``pictures``: fields as colours.
"""
