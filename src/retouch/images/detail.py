"""How much detail a fill has, compared with the photo around it.

The seam score looks at the edge of a fill only. A smear has no edge, but no detail either; this score sees
it. It does not see whether the detail is the right one.
"""

from __future__ import annotations

import cv2
import numpy as np

from retouch.images.mask import Mask

_MARGIN = 5  # side in pixels of the square by which both parts keep away from the edge
# Added to both gradients, so that a plain fill of a plain photo scores 1. A step of one level has 4.
_PLAIN = 1.0


def detail_score(pixels: np.ndarray, mask: Mask) -> float:
    """Return the mean gradient inside the mask over that outside; 1 is natural, NaN if one part is missing.

    `pixels` are (height, width, 3) of 8 bits: the photo, or a part of it around the hole.
    """
    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY).astype(np.float32)
    slope = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    hard, square = mask.hard.astype(np.uint8), np.ones((_MARGIN, _MARGIN), np.uint8)
    inner, outer = cv2.erode(hard, square) > 0, cv2.dilate(hard, square) == 0
    if not inner.any() or not outer.any():
        return float("nan")
    return float((slope[inner].mean() + _PLAIN) / (slope[outer].mean() + _PLAIN))
