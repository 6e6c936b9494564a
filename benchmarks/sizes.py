"""Sizes of Stable Diffusion 1.4's prompts, and of the keys and values that read them."""

WIDTH, TOKENS = 768, 77
OUTPUTS = (*[320] * 4, *[640] * 4, *[1280] * 12, *[640] * 6, *[320] * 6)
"""Outputs of each of the 32 keys and values, in the UNet's order."""
