"""RECE: Reliable and Efficient Concept Erasure (Gong et al., ECCV 2024)."""
