"""TRCE: Towards Reliable Malicious Concept Erasure (Chen et al., ICCV 2025), both stages."""
