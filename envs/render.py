"""What rendering returns: an array that notebooks show as an image; and a window for `render_mode="human"`."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image


class Picture(np.ndarray):
    """A uint8 image (h, w, 3): an array that a notebook shows as an image if it is the last line of a cell."""

    def _repr_png_(self) -> bytes | None:
        """The image as PNG, for IPython; None for an array that was computed from one and is no image any more."""
        if self.dtype != np.uint8 or self.ndim != 3 or self.shape[2] != 3 or not self.size:
            return None
        Image.fromarray(np.asarray(self)).save(file := BytesIO(), "PNG")
        return file.getvalue()


class Viewer:
    """Shows uint8 frames (h, w, 3) in a pygame window at a given frame rate."""

    def __init__(self, title: str, fps: float, height: int = 480) -> None:
        self.title, self.fps, self.height = title, fps, height
        self.window: Any = None

    def show(self, frame: np.ndarray) -> None:
        """Draw one frame, scaled to the window's height, and wait for the frame rate."""
        import pygame  # imported late: it is slow to load, and needed only for a window

        size = (self.height * frame.shape[1] // frame.shape[0], self.height)
        if self.window is None:
            pygame.display.init()
            pygame.display.set_caption(self.title)
            self.window, self.clock = pygame.display.set_mode(size), pygame.time.Clock()
        surface = pygame.surfarray.make_surface(frame.swapaxes(0, 1))
        self.window.blit(pygame.transform.scale(surface, size), (0, 0))
        pygame.display.flip()
        pygame.event.pump()
        self.clock.tick(self.fps)

    def close(self) -> None:
        if self.window is not None:
            import pygame

            pygame.display.quit()
            self.window = None
