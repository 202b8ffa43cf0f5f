"""Sheets hold every image where its row and column say, and a trace's animation every stage."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cdrl.method.trace import Trace
from cdrl.pictures import to_uint8
from cdrl.sheets import MAX_STAGES, animation, labelled, path_sheet, stacked, trace_sheet


def flat(values: Tensor) -> Tensor:
    """uint8 images (R, C, 1, 8, 8) of one shade each."""
    return values.to(torch.uint8)[..., None, None, None].expand(*values.shape, 1, 8, 8)


def middles(picture: Image.Image, rows: int, columns: int, left: int, top: int) -> list[list[int]]:
    """The shade in the middle of each cell."""
    pixels = np.asarray(picture.convert("L"))[top:, left:]
    height, width = (side / number for side, number in zip(pixels.shape, (rows, columns), strict=True))
    places = [[(int((r + 0.5) * height), int((c + 0.5) * width)) for c in range(columns)] for r in range(rows)]
    return [[int(pixels[place]) for place in row] for row in places]


def made_trace(num_levels: int, num_steps: int) -> Trace:
    """Two images; stage number n has the shade n, and 100 + n in the second image."""
    trace, number = Trace(), 0
    stages = [(num_levels, 0)]
    stages += [(level, step) for level in reversed(range(num_levels)) for step in range(num_steps + 1)] + [(-1, 0)]
    for level, step in stages:
        trace(level, step, (torch.tensor([number, 100 + number]) / 127.5 - 1).view(2, 1, 1, 1).expand(2, 1, 8, 8))
        number += 1
    return trace


def test_images_stand_in_their_rows_and_columns() -> None:
    shades = torch.tensor([[10, 20, 30], [40, 50, 255]])
    bare = labelled(flat(shades))
    assert middles(bare, 2, 3, 0, 0) == shades.tolist()
    named = labelled(flat(shades), ["first", "second"], ["a", "b", "c"], title="title")
    left, top = named.width - bare.width, named.height - bare.height
    assert left > 16 and top == 48
    assert middles(named, 2, 3, left, top) == shades.tolist()
    texts = np.asarray(named.convert("L"))
    assert texts[:top].max() > 200 and texts[top:, :left].max() > 200


def test_a_long_title_is_not_cut() -> None:
    assert labelled(flat(torch.tensor([[1]])), title="a title that is longer than its picture").width > 200


def test_stacked_pictures_do_not_overlap() -> None:
    panels = [Image.new("L", (30, 20), 200 + n).convert("RGB") for n in range(5)]
    whole = np.asarray(stacked(panels, 2).convert("L"))
    assert [int((whole == 200 + n).sum()) for n in range(5)] == [600] * 5


def test_a_trace_shows_every_level_and_every_step() -> None:
    trace = made_trace(num_levels=3, num_steps=2)
    sheet = trace_sheet(trace, image=1)
    cells = middles(sheet, 5, 3, sheet.width - labelled(flat(torch.zeros(5, 3))).width, 24)
    assert cells == [[100, 64, 64], [101, 102, 103], [104, 105, 106], [107, 108, 109], [110, 64, 64]]
    path = path_sheet(trace)
    assert middles(path, 2, 5, 0, 24) == [[0, 3, 6, 9, 10], [100, 103, 106, 109, 110]]


def test_levels_with_other_numbers_of_steps_leave_places_empty() -> None:
    trace = Trace()
    for level, step, shade in [(2, 0, 1), (1, 0, 2), (0, 0, 3), (0, 1, 4), (-1, 0, 5)]:
        trace(level, step, torch.full((1, 1, 8, 8), shade / 127.5 - 1))
    sheet = trace_sheet(trace, image=0)
    left = sheet.width - labelled(flat(torch.zeros(4, 2))).width
    assert middles(sheet, 4, 2, left, 24) == [[1, 64], [2, 64], [3, 4], [5, 64]]


def test_of_many_levels_the_ends_are_shown() -> None:
    trace = made_trace(num_levels=100, num_steps=0)
    path = path_sheet(trace)
    shades = middles(path, 2, MAX_STAGES, 0, 24)[0]
    assert shades[0] == 0 and shades[-1] == 101 and sorted(shades) == shades


def test_an_animation_has_a_frame_for_each_stage_and_rests_at_the_end() -> None:
    trace = made_trace(num_levels=2, num_steps=3)
    with Image.open(io.BytesIO(animation(trace, columns=2))) as gif:
        assert gif.n_frames == len(trace.stages) == 10 and gif.info["loop"] == 0
        for number, stage in enumerate(trace.stages):
            gif.seek(number)
            expected = to_uint8(stage.x)[:, 0, 0, 0].tolist()
            frame = gif.convert("RGB")
            assert np.allclose(middles(frame, 1, 2, 0, 24), [expected], atol=2)  # of 256 colours
        assert gif.info["duration"] == 2500
