"""Repeated blocks are folded, and nothing is lost."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.reports.folding import Fold, block_name, fold_rows


@dataclass(frozen=True)
class Row:
    name: str
    type: str


def fold(rows: list[Row], max_rows: int | None = 60) -> list[Row | Fold[Row]]:
    return fold_rows(rows, lambda r: r.name, lambda r: r.type, max_rows)


def unfolded(entries: list[Row | Fold[Row]]) -> list[Row]:
    return [row for entry in entries for row in (entry.rows if isinstance(entry, Fold) else (entry,))]


def sequential(depth: int) -> list[Row]:
    return [Row(str(i), "Linear" if i % 2 == 0 else "Sigmoid") for i in range(2 * depth)]


def transformer(blocks: int) -> list[Row]:
    rows = [Row("embed", "Embedding")]
    for b in range(blocks):
        rows += [
            Row(f"h.{b}.{child}", kind) for child, kind in (("ln", "LayerNorm"), ("attn", "Attention"), ("mlp", "MLP"))
        ]
        rows.append(Row(f"h.{b}", "Block"))
    return [*rows, Row("head", "Linear")]


def test_up_to_sixty_rows_are_listed_one_by_one() -> None:
    rows = sequential(30)
    assert fold(rows) == rows


def test_a_deep_sequential_keeps_its_ends_and_folds_pairs_between() -> None:
    entries = fold(sequential(500))
    assert [e.name for e in entries[:2] if isinstance(e, Row)] == ["0", "1"]
    assert [e.name for e in entries[-2:] if isinstance(e, Row)] == ["998", "999"]
    folds = [e for e in entries if isinstance(e, Fold)]
    # 60 rows less the two open pairs.
    assert len(folds) == 56
    assert folds[0].label == "2-17"  # 498 pairs over 56 rows: the first has 498 // 56 = 8 pairs, rows 2 to 17
    assert folds[0].type == "8 × Linear+Sigmoid"


def test_blocks_of_a_transformer_fold_to_one_row_each_named_after_the_block() -> None:
    entries = fold(transformer(24))
    labels = [e.label if isinstance(e, Fold) else e.name for e in entries]
    assert labels[:6] == ["embed", "h.0.ln", "h.0.attn", "h.0.mlp", "h.0", "h.1"]
    assert labels[-6:] == ["h.22", "h.23.ln", "h.23.attn", "h.23.mlp", "h.23", "head"]
    assert entries[5] == Fold("h.1", "1 × Block", tuple(transformer(24)[5:9]))


def test_stages_with_blocks_inside_fold_at_the_inner_number() -> None:
    rows = [Row(f"stages.{s}.{b}.conv", "Conv2d") for s in range(3) for b in range(s * 10 + 20)]
    folds = [e for e in fold(rows, 30) if isinstance(e, Fold)]
    assert {f.label.rsplit(".", 1)[0] for f in folds} == {"stages.0", "stages.1", "stages.2"}


def test_calls_of_a_reused_module_fold_by_their_call_number() -> None:
    rows = [Row(f"cell#{k}", "RNNCell") for k in range(100)]
    entries = fold(rows, 20)
    assert entries[0] == rows[0]
    assert isinstance(entries[1], Fold)
    assert entries[1].label == "cell#1-5"  # 98 calls over 18 rows: 98 // 18 = 5 in the first


def test_names_without_any_repetition_are_folded_by_neighbourhood() -> None:
    rows = [Row(f"layer_{chr(97 + i % 26)}{i}x", f"T{i}") for i in range(500)]
    entries = fold(rows)
    assert len(entries) == 60
    assert unfolded(entries) == rows


def test_no_limit_lists_everything() -> None:
    rows = sequential(500)
    assert fold(rows, None) == rows


NAMES = st.sampled_from(["a", "b", "h.0", "h.1", "h.2", "h.3.x", "5", "6", "c#0", "c#1"])


@given(st.lists(st.tuples(NAMES, st.sampled_from("AB")), max_size=120), st.integers(min_value=1, max_value=40))
def test_folding_keeps_every_row_once_and_in_order(pairs: list[tuple[str, str]], max_rows: int) -> None:
    rows = [Row(name, kind) for name, kind in pairs]
    entries = fold(rows, max_rows)
    assert unfolded(entries) == rows
    assert len(entries) <= 2 * max_rows


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("transformer.h.3.attn.c_proj", "transformer.h.3"),
        ("fc1", "fc1"),
        ("cell#7", "cell#7"),
        ("lstm[1][0]", "lstm[1][0]"),
    ],
)
def test_the_block_of_a_layer_is_its_name_up_to_the_first_number(name: str, block: str) -> None:
    assert block_name(name) == block
