"""A plan carried out: by removing positions (cut) and by silencing them (mask), both by one surgeon.

surgeon            cut and mask                               repair   numbers that are lengths of axes
dynamic_positions  kept positions of axes of unknown length   dead     units that zeros left dead
packing            zeros stored small
"""

from onnxprune.surgery.surgeon import cut, kept_positions, mask, uncut

__all__ = ["cut", "kept_positions", "mask", "uncut"]
