"""From what a person says or points at to Gaussians, and from Gaussians to edits.

- `text`: phrases -> scores per Gaussian and per pixel, and masks;
- `spatial`: points, a box, a brush stroke in one view -> a selection in all views, mostly by the scene's `pieces`;
- `instances`: all objects at once; `affinity`: a field in which Gaussians of one object are alike;
- `selection`: a set of Gaussians; `targets`: how an edit says which Gaussians it means;
- `edits`: changes as data, with undo and redo, `edit_files` on disk; `language`: sentences -> edits, by rules.
"""
