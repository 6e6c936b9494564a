"""Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models (Zhang et al., 2023)."""
