"""Charts: data lands where it should."""

import base64
import io
import math

import pytest
from PIL import Image

from limbeck.report.charts import (
    BOTTOM,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    Axis,
    Spot,
    amount,
    band_panel,
    line_panel,
    mark_panel,
    thin,
)
from limbeck.report.heat import SIDE, heat_map, png


def test_axis_maps_its_ends_to_the_frame():
    axis = Axis.across([10, 30])
    assert (axis(10), axis(20), axis(30)) == (LEFT, (LEFT + RIGHT) / 2, RIGHT)
    up = Axis.upwards([0, 10], room=0)
    assert (up(0), up(10)) == (BOTTOM, TOP)


def test_axis_of_a_single_value_has_room_on_both_sides():
    axis = Axis.upwards([5.0])
    assert TOP < axis(5.0) < BOTTOM


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 100, ["0", "20", "40", "60", "80", "100"]),
        (0.2, 1.3, ["0.2", "0.4", "0.6", "0.8", "1.0", "1.2"]),
        (0, 4000, ["0", "1k", "2k", "3k", "4k"]),
        (0, 8.6e6, ["0", "2M", "4M", "6M", "8M"]),
        (0, 1e-3, ["0", "0.0002", "0.0004", "0.0006", "0.0008", "0.001"]),
    ],
)
def test_ticks_are_round_and_labelled_as_finely_as_they_stand(low, high, labels):
    ticks = Axis(low=low, high=high, start=0, end=100).ticks()
    assert [tick.label for tick in ticks] == labels
    assert all(0 <= tick.at <= 100 for tick in ticks)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1500, "1.5k"), (3.2e9, "3.2G"), (0.123456, "0.1235"), (2e-5, "2e-5")]
)
def test_amounts_are_short(value, text):
    assert amount(value) == text


def test_thinning_keeps_the_mean_and_the_length_in_bounds():
    points = [(float(i), math.sin(i)) for i in range(1000)]
    thinned = thin(points)
    assert len(thinned) == MOST_POINTS
    assert sum(y for _, y in thinned) / MOST_POINTS == pytest.approx(sum(y for _, y in points) / 1000, abs=1e-9)


def test_line_leaves_out_what_is_not_finite_and_scales_to_the_rest():
    panel = line_panel("loss", [("a", "plain", [(1, 4.0), (2, math.nan), (3, 2.0)])], rules=[2])
    assert panel.lines[0].xs == [LEFT, RIGHT]
    assert panel.rules == [(LEFT + RIGHT) / 2]
    assert panel.summary == "loss over training steps: a from 4 to 2."


def test_a_chart_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="'loss'"):
        line_panel("loss", [("a", "plain", [(1, math.inf)])])
    with pytest.raises(ValueError, match="'TR@1'"):
        mark_panel("TR@1", "MACs", [])
    with pytest.raises(ValueError, match="'a'"):
        band_panel("a", [1.0, 2.0], [("x", "term-1", [1.0])])


def test_bands_are_stacked_and_scaled_to_one():
    panel = band_panel("a", [1.0, 2.0], [("x", "term-1", [1.0, 3.0]), ("y", "term-2", [3.0, 1.0])])
    assert [line.texts[0] for line in panel.lines] == ["25% at step 1", "75% at step 1"]
    assert panel.lines[1].path.startswith(f"M{LEFT},{TOP}")


def test_marks_stand_higher_for_better_and_further_right_for_dearer():
    spots = [
        Spot(label="t", tone="teacher", x=8.0, y=60.0, text=""),
        Spot(label="s", tone="distilled", x=2.0, y=57.0, text=""),
    ]
    teacher, student = mark_panel("TR@1", "MACs", spots, level=60.0).marks
    assert teacher.x > student.x
    assert teacher.y < student.y
    assert (teacher.shape, student.shape) == ("square", "circle")
    assert (teacher.anchor, student.anchor) == ("end", "start")


def test_labels_of_models_that_lie_close_together_move_apart():
    spots = [
        Spot(label=n, tone="distilled", x=2.0, y=y, text="") for n, y in (("low", 50.0), ("high", 50.1), ("far", 90.0))
    ]
    low, high, far = mark_panel("TR@1", "MACs", spots).marks
    assert low.nudge > high.nudge
    assert far.nudge == 4.0


def test_heat_is_clear_at_the_lowest_value_and_strongest_at_the_highest():
    address = heat_map(((0.0, 0.0), (0.0, 1.0)))
    image = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert image.size == (SIDE, SIDE)
    alpha = image.getchannel("A")
    assert alpha.getpixel((0, 0)) == 0
    assert alpha.getpixel((SIDE - 1, SIDE - 1)) == max(alpha.get_flattened_data())


def test_a_flat_heat_map_is_clear_and_a_wide_grid_stays_wide():
    image = Image.open(io.BytesIO(base64.b64decode(heat_map(((0.3, 0.3, 0.3, 0.3),)).partition(",")[2])))
    assert image.size == (SIDE, SIDE // 4)
    assert image.getextrema()[3] == (0, 0)


def test_png_is_what_an_imaging_library_reads_back():
    pixels = [[(1, 2, 3, 4), (250, 0, 9, 255)]]
    image = Image.open(io.BytesIO(png(pixels)))
    assert [image.getpixel((x, 0)) for x in range(2)] == pixels[0]
