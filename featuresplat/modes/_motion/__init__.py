"""Motion of Gaussians: nodes that move rigidly, and how Gaussians follow them.

- ``dualquat``: rigid motions as dual quaternions, blended without shrinking;
- ``nodes``: sparse nodes with a rigid motion at every frame;
- ``skinning``: Gaussians that follow their nodes;
- ``losses``: as rigid as possible, and without jerks;
- ``fit``: nodes from point tracks;
- ``start``: what a training starts from.
"""
