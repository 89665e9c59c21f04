"""Physically based shading: light as an environment, surfaces as metallic-roughness GGX, by themselves and tested so.

- `cubemap`: environments as cubemaps and latitude-longitude maps, and the directions of both
- `tone`: linear radiance to what a photograph shows
- `ggx`: the surface
- `prefilter`: its reflections by the split sum
- `harmonics`: diffuse light by triple products of spherical harmonics
- `occlusion`, `transfer`: what hides the light from the Gaussians, and what they lend each other
- `monte_carlo`: the same integrals by sampling
"""
