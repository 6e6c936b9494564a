"""SepME: CiE and separable SepCE (Zhao et al., arXiv 2402.05947, 2024)."""
