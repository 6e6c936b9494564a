"""CPE: Concept Pinpoint Eraser (Lee et al., ICLR 2025)."""
