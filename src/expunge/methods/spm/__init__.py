"""SPM: One-dimensional Adapter to Rule Them All (Lyu et al., CVPR 2024)."""
