"""The web viewer. Installed as ``featuresplat.viewer``; no top-level module of this name reaches site-packages."""
