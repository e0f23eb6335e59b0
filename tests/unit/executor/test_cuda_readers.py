"""Slots that only fp8 products read are found; one other reader, or a cut between, and they stay as they are."""

from __future__ import annotations

from headrace.executor.cuda.readers import normed_sums, read_before_written, rounded_ops
from headrace.model.program import Attention, Head, Linear, Norm, Op

NORM = Norm(src="x", dst="h", weight="n", eps=1e-5)
LAYER: tuple[Op, ...] = (
    NORM,
    Linear(src="h", dst="qkv", weight="qkv"),
    Attention(src="q", dst="a", layer=0, num_heads=1, num_kv_heads=1, head_dim=8, scale=1.0),
    Linear(src="a", dst="x", weight="o", epilogue="add"),
    NORM,
    Linear(src="h", dst="f", weight="gate_up", epilogue="glu"),
    Linear(src="f", dst="x", weight="down", epilogue="add"),
    NORM,
    Head(src="h", table="t"),
)


def test_norms_and_gates_of_products_are_rounded_attention_and_what_a_head_reads_are_not() -> None:
    assert rounded_ops(LAYER, lambda _: True, cut=2) == ({0, 4, 5}, {1, 5, 6})


def test_one_product_that_takes_no_rounded_tokens_keeps_its_slot_as_it_is() -> None:
    assert rounded_ops(LAYER, lambda op: op.weight != "down", cut=2) == ({0, 4}, {1, 5})


def test_a_slot_that_is_read_by_another_op_too_stays_as_it_is() -> None:
    also = Norm(src="h", dst="g", weight="n", eps=1e-5)
    ops = (NORM, Linear(src="h", dst="qkv", weight="qkv"), also, *LAYER[2:])
    writes, reads = rounded_ops(ops, lambda _: True, cut=3)
    assert 0 not in writes
    assert 1 not in reads
    summed = (NORM, Linear(src="h", dst="h", weight="w", epilogue="add"), *LAYER[2:])
    assert 0 not in rounded_ops(summed, lambda _: True, cut=2)[0]


def test_what_is_read_behind_the_cut_is_not_rounded_before_it() -> None:
    ops = (*LAYER[:4], Linear(src="h", dst="g", weight="gate_up", epilogue="glu"), *LAYER[4:])
    assert 0 not in rounded_ops(ops, lambda _: True, cut=2)[0]
    assert 0 in rounded_ops(ops, lambda _: True, cut=9)[0]


def test_what_is_read_before_it_is_written_again_is_named() -> None:
    assert read_before_written(LAYER[3:]) == {"a", "x"}
    assert read_before_written(LAYER[4:6]) == {"x"}


def test_a_norm_behind_an_added_product_that_products_alone_read_is_shared_by_them() -> None:
    two_layers = (*LAYER[:7], *LAYER)
    assert normed_sums(two_layers, cut=9) == {4, 7, 11}
    assert normed_sums(LAYER, cut=2) == {4}  # not the first, behind an embedding, nor the last, that a head reads
    between = (*LAYER[:4], Norm(src="x", dst="g", weight="n", eps=1e-5), *LAYER[4:])
    assert normed_sums(between, cut=2) == frozenset()  # the first of two, which nobody reads, or the second
