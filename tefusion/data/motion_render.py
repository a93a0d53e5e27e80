"""Scene -> frames and masks: antialiased sprites on a smooth periodic texture, all frames of a clip at once."""

import numpy as np

from tefusion.data.motion_scene import Array, Scene

PALETTE = np.array(  # by colour id, red first; 7 is the flash
    [
        (0, 0, 0),
        (230, 40, 40),
        (40, 200, 60),
        (50, 80, 240),
        (235, 225, 40),
        (225, 50, 225),
        (40, 220, 225),
        (255,) * 3,
    ],
    dtype=np.float32,
)
FLASH = 7


def texture(rng: np.random.Generator, size: int, contrast: float, detail: float) -> Array:
    """(size, size) grey levels about a mean of 110, periodic, mostly of up to `detail` cycles across the picture."""
    cycles = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) * size
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * np.exp(-((cycles / detail) ** 2))
    spectrum[0, 0] = 0
    grey = np.fft.irfft2(spectrum, s=(size, size))
    return np.clip(110 + contrast * grey / grey.std(), 0, 255)


def signed_distance(shape: int, along: Array, across: Array, radius: float) -> Array:
    """Signed distance (px, negative inside) to shape id 1..4 that points along the first axis."""
    across = np.abs(across)
    if shape == 1:  # square
        return np.maximum(np.abs(along), across) - 0.8 * radius
    if shape == 2:  # disc
        return np.hypot(along, across) - radius
    if shape == 3:  # triangle
        return np.maximum(-along, 0.5 * along + 0.866 * across) - 0.6 * radius
    head = np.maximum(-along, (0.9 * along + 1.1 * across - 0.99 * radius) / 1.42)
    shaft = np.maximum(np.abs(along + 0.5 * radius) - 0.6 * radius, across - 0.3 * radius)
    return np.minimum(head, shaft)


def render(scene: Scene, texture: Array, radius: float) -> tuple[Array, Array]:
    """uint8 frames (t, size, size, 3) and masks (t, size, size): 1 + index of the covering object, or 0."""
    size, frames = len(texture), len(scene.background)
    pixels, t = np.arange(size), np.arange(frames)[:, None, None]
    shift = np.round(scene.background).astype(int)
    rows, columns = (pixels - shift[:, 1:]) % size, (pixels - shift[:, :1]) % size
    grey = np.round(texture).astype(np.uint8)[rows[:, :, None], columns[:, None, :]]
    picture = np.repeat(grey[..., None], 3, axis=-1)
    masks = np.zeros((frames, size, size), np.uint8)
    window = np.arange(-int(1.25 * radius) - 2, int(1.25 * radius) + 3)
    for i, (colour, shape) in enumerate(zip(scene.colours, scene.shapes, strict=True)):
        position = scene.positions[:, i].astype(np.float32)
        near = np.floor(position).astype(int)[:, :, None] + window  # t 2 w
        dx, dy = np.moveaxis(near + np.float32(0.5) - position[:, :, None], 1, 0)
        angle = np.deg2rad(scene.angles[:, i]).astype(np.float32)[:, None, None]
        dx, dy, cos, sin = dx[:, None, :], dy[:, :, None], np.cos(angle), np.sin(angle)
        distance = signed_distance(int(shape), dx * cos - dy * sin, dx * sin + dy * cos, radius)
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        x, y = near[:, 0, None, :] % size, near[:, 1, :, None] % size
        paint = PALETTE[np.where(scene.flash[:, i], FLASH, colour)][:, None, None]
        under = picture[t, y, x]
        picture[t, y, x] = np.round(under + cover * (paint - under)).astype(np.uint8)
        masks[t, y, x] = np.where(cover[..., 0] > 0.5, i + 1, masks[t, y, x])
    return picture, masks
