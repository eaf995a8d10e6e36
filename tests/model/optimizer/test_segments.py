"""Where parameters lie in an optimizer's tensors: whole, and cut at ranks' borders with padding between."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import normalize

from model.optimizer.segments import Layout, Segment, unit_rows_


def layout_of(segments, size, shapes=((3, 4), (5,)), groups=((0,), (1,)), **options):
    """One tensor of `size` elements, its segments, and the layout of two parameters."""
    tensor = torch.zeros(size)
    return tensor, Layout(["matrix", "vector"], shapes, groups, {tensor: segments}, **options)


def test_a_layout_of_whole_parameters_has_a_segment_each():
    matrix, vector, other = torch.zeros(3, 4), torch.zeros(5), torch.zeros(2)
    layout = Layout.of_whole(
        [{"params": [matrix, vector]}, {"params": [other]}], {matrix: "m", vector: "v", other: "o"}
    )
    assert layout.names == ("m", "v", "o") and layout.groups == ((0, 1), (2,))
    assert layout.shapes == (torch.Size([3, 4]), torch.Size([5]), torch.Size([2]))
    assert layout.tensors[vector] == [Segment(1, 0, 0, 5)] and not layout.partitioned
    assert layout.group is None and layout.device == torch.device("cpu")
    (piece,) = layout.pieces(matrix, matrix)
    assert piece is matrix
    assert layout.numbers(other).tolist() == [2]
    assert [layout.members(group).tolist() for group in (0, 1)] == [[0, 1], [2]]
    assert layout.members(0).dtype == layout.numbers(other).dtype == torch.int64
    assert Layout.of_whole([{"params": [matrix, vector]}]).names == ("parameter 0", "parameter 1")


def test_pieces_leave_out_padding_before_between_and_after_them():
    tensor, layout = layout_of([Segment(0, 4, 2, 6), Segment(1, 0, 10, 3)], 16)
    values = torch.arange(16.0)
    assert [piece.tolist() for piece in layout.pieces(tensor, values)] == [[2, 3, 4, 5, 6, 7], [10, 11, 12]]
    assert layout.numbers(tensor).tolist() == [0, 1]
    layout.pieces(tensor, values)[0].fill_(-1)
    assert values.tolist() == [0, 1, *[-1] * 6, *range(8, 16)]  # they are views


def test_segments_without_padding_and_a_tensor_of_padding_alone():
    tensor, layout = layout_of([Segment(0, 0, 0, 12), Segment(1, 0, 12, 5)], 17)
    assert [len(piece) for piece in layout.pieces(tensor, torch.zeros(17))] == [12, 5]
    tensor, layout = layout_of([Segment(1, 1, 0, 3)], 3)
    assert [len(piece) for piece in layout.pieces(tensor, torch.zeros(3))] == [3]
    tensor, layout = layout_of([], 4)
    assert layout.pieces(tensor, torch.zeros(4)) == [] and layout.numbers(tensor).tolist() == []


@pytest.mark.parametrize(
    "segments",
    [
        [Segment(0, 0, 0, 6), Segment(1, 0, 5, 5)],  # they overlap
        [Segment(1, 0, 6, 5), Segment(0, 0, 0, 6)],  # not ascending
        [Segment(0, 0, 5, 6)],  # more than there is
    ],
)
def test_segments_that_do_not_fit_are_an_error(segments):
    with pytest.raises(ValueError, match="segments overlap or leave a tensor of 10 elements: Segment"):
        layout_of(segments, 10)


def test_sums_go_over_the_ranks_only_where_parameters_are_partitioned(monkeypatch):
    calls = []

    def double(values, group):
        calls.append(group)
        values.mul_(2)

    monkeypatch.setattr(dist, "all_reduce", double)
    _, whole = layout_of([Segment(0, 0, 0, 12)], 12)
    _, part = layout_of([Segment(0, 0, 0, 12)], 12, partitioned=True, group="the group")
    assert whole.add_up(torch.ones(2)).tolist() == [1, 1] and calls == []
    assert part.add_up(torch.ones(2)).tolist() == [2, 2] and calls == ["the group"]


def test_a_device_may_be_given():
    assert layout_of([], 4, device=torch.device("meta"))[1].device == torch.device("meta")
    assert Layout([], [], [], {}).device == torch.device("cpu")


def test_rows_get_unit_norm_and_rows_of_zeros_stay():
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-3, 0.0]])
    unit_rows_(weight)
    assert torch.allclose(weight, torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]))
    matrix = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    expected = normalize(matrix, dim=1)
    layout = Layout.of_whole([{"params": [matrix]}])
    layout.unit_rows_([matrix], [0])
    torch.testing.assert_close(matrix, expected)


class Summed(Layout):
    """A rank's layout that gets the sums over the ranks from `total`, and keeps the rank's own sums in `own`."""

    def add_up(self, values):
        self.own = values.clone()
        return self.total.clone()


def test_rows_cut_at_ranks_borders_get_the_norm_of_the_whole_row():
    """Two matrices, of 4 and of 3 numbers a row, behind one another, cut in the middle of a row and padded."""
    chance = torch.Generator().manual_seed(1)
    matrices = [torch.randn(shape, generator=chance) for shape in ((3, 4), (2, 3))]
    matrices[1][1] = 0
    flat = torch.cat([matrix.flatten() for matrix in matrices])
    squares = torch.cat([matrix.double().square().sum(1) for matrix in matrices])
    cuts = (
        (2, [Segment(0, 0, 2, 6)], flat[:6]),
        (0, [Segment(0, 6, 0, 6), Segment(1, 0, 6, 4)], flat[6:16]),
        (1, [Segment(1, 4, 1, 2)], flat[16:]),
    )
    pieces, sums = [], torch.zeros(5, dtype=torch.float64)
    for padding, segments, values in cuts:
        tensor = torch.cat([torch.full((padding,), 7.0), values, torch.full((3,), 9.0)])
        layout = Summed(["a", "b"], [(3, 4), (2, 3)], [(0, 1)], {tensor: segments}, partitioned=True)
        layout.total = squares
        layout.unit_rows_([tensor], [0, 1])
        assert (tensor[:padding] == 7).all() and (tensor[-3:] == 9).all()  # padding is left alone
        pieces.append(tensor[padding : padding + len(values)])
        sums += layout.own
    torch.testing.assert_close(sums, squares)
    expected = torch.cat([normalize(matrix, dim=1).flatten() for matrix in matrices])
    torch.testing.assert_close(torch.cat(pieces), expected)


def test_a_rank_without_a_part_of_the_matrices_takes_part_in_the_sum():
    tensor = torch.ones(4)
    layout = Summed(["a"], [(3, 4)], [(0,)], {tensor: []}, partitioned=True)
    layout.total = torch.ones(3, dtype=torch.float64)
    layout.unit_rows_([tensor], [0])
    assert layout.own.tolist() == [0, 0, 0] and layout.own.dtype == torch.float64 and (tensor == 1).all()
