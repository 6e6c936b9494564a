"""MACE: Mass Concept Erasure in Diffusion Models (Lu et al., CVPR 2024)."""
