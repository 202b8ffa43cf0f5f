"""Sheets of images with names beside the rows and above the columns; a sampling trace as a sheet and an animation."""

import io
from collections.abc import Sequence
from typing import TypeVar

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cdrl.method.trace import Trace
from cdrl.pictures import sheet, to_uint8

__all__ = ["animation", "labelled", "level_name", "path_sheet", "stacked", "trace_sheet"]

GRAY = (64, 64, 64)  # as `cdrl.pictures.sheet` draws its lines
MIN_SIDE, MOVING_SIDE = 48, 96  # of an image in a sheet and in an animation, in pixels
LINE = 24
MAX_STAGES = 32  # rows or columns of a trace; of more, as many evenly spread ones are shown
MAX_FRAMES = 150
FRAME_MS, LAST_MS = 90, 2500

Item = TypeVar("Item")


def labelled(
    images: Tensor, rows: Sequence[str] = (), columns: Sequence[str] = (), *, title: str = "", min_side: int = MIN_SIDE
) -> Image.Image:
    """A sheet of uint8 images (R, C, channels, H, W) with a name beside each row, one above each column and a title."""
    grid = sheet(images.flatten(0, 1), images.shape[1], min_side=min_side)
    font = ImageFont.load_default(14)
    left = 16 + int(max(map(font.getlength, rows))) if rows else 0
    top = LINE * (bool(columns) + bool(title))
    width = max(left + grid.width, 16 + int(font.getlength(title)))
    picture = Image.new("RGB", (width, top + grid.height), GRAY)
    picture.paste(grid, (left, top))
    draw = ImageDraw.Draw(picture)
    draw.text((8, LINE / 2), title, "white", font, anchor="lm")
    for row, name in enumerate(rows):
        draw.text((8, top + (row + 0.5) * grid.height / len(images)), name, "white", font, anchor="lm")
    for column, name in enumerate(columns):
        middle = left + (column + 0.5) * grid.width / images.shape[1]
        draw.text((middle, top - LINE / 2), name, "white", font, anchor="mm")
    return picture


def stacked(panels: Sequence[Image.Image], columns: int, *, gap: int = 20) -> Image.Image:
    """Pictures of one size side by side, so many in a row."""
    width, height = panels[0].width + gap, panels[0].height + gap
    columns = min(columns, len(panels))
    whole = Image.new("RGB", (columns * width + gap, -(-len(panels) // columns) * height + gap), GRAY)
    for number, panel in enumerate(panels):
        whole.paste(panel, (gap + number % columns * width, gap + number // columns * height))
    return whole


def path_sheet(trace: Trace, rows: Sequence[str] = ()) -> Image.Image:
    """A row for each image, from noise to data; a level each column."""
    last = {stage.level: stage.x for stage in trace.stages}
    levels = _spread(list(last))
    stages = torch.stack([last[level].cpu() for level in levels], dim=1)
    return labelled(to_uint8(stages), rows, [_short_name(level, trace) for level in levels])


def trace_sheet(trace: Trace, image: int, *, title: str = "") -> Image.Image:
    """One image at every level (rows, from noise to data) and every step (columns).

    Of a level that was left several times the last time is shown.
    """
    cells = {(stage.level, stage.step): stage.x[image].cpu() for stage in trace.stages}
    levels, steps = _spread([*dict.fromkeys(level for level, _ in cells)]), _spread(sorted({step for _, step in cells}))
    blank = torch.full_like(next(iter(cells.values())), GRAY[0] / 127.5 - 1)
    grid = torch.stack([torch.stack([cells.get((level, step), blank) for step in steps]) for level in levels])
    columns = ["start", *map(str, steps[1:])]
    return labelled(to_uint8(grid), [level_name(level, trace) for level in levels], columns, title=title)


def animation(trace: Trace, columns: int) -> bytes:
    """A GIF of all images, stage by stage, that runs for ever and rests at the end."""
    frames = []
    for stage in _spread(trace.stages, MAX_FRAMES):
        name = level_name(stage.level, trace) + (f", step {stage.step}" if stage.step else "")
        images = to_uint8(stage.x.cpu())
        missing = -len(images) % columns
        filled = torch.cat([images, torch.full_like(images[:1], GRAY[0]).expand(missing, *images.shape[1:])])
        frames.append(labelled(filled.unflatten(0, (-1, columns)), title=name, min_side=MOVING_SIDE))
    buffer = io.BytesIO()
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return buffer.getvalue()


def level_name(level: int, trace: Trace) -> str:
    """What a row of a trace is called."""
    if level < 0:
        return "x_0, denoised"
    return "x_T, noise" if level == trace.stages[0].level else f"level {level}"


def _short_name(level: int, trace: Trace) -> str:
    return level_name(level, trace).partition(",")[0].replace("level ", "s = ")


def _spread(items: Sequence[Item], number: int = MAX_STAGES) -> Sequence[Item]:
    """At most so many items, evenly spread, with both ends."""
    if len(items) <= number:
        return items
    return [items[round(place)] for place in torch.linspace(0, len(items) - 1, number).tolist()]
