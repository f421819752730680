"""The bench of patches: its baselines lose nothing, its rules notice every shortfall, its arithmetic is right."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.delta.tensors import find_float_ranges

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))  # the scripts are no package: they find each other in their folder

from bench_delta import Findings, list_float_models, make_figures, make_parts, make_section  # noqa: E402
from delta_judge import (  # noqa: E402
    MB,
    Cost,
    FullRow,
    LargeRow,
    Made,
    PairRow,
    find_shortfalls,
    measure_growth,
    measure_research,
    summarise,
)
from delta_lanes import Lanes, Step  # noqa: E402
from delta_large import METADATA_KIND, Weights, write_large_pair  # noqa: E402
from delta_ours import apply_patch, make_full, make_patch, require_same  # noqa: E402
from delta_pairs import GENERIC, KINDS, RESEARCH, VersionPair, find_models, find_shared_pairs, read_corpus  # noqa: E402
from delta_peers import PeerCache, find_missing, get_peer, make_key, measure_peers  # noqa: E402
from delta_rans import decode_symbols, encode_symbols, make_frequencies  # noqa: E402
from delta_research import (  # noqa: E402
    Tensor,
    TensorPair,
    decode_bitx,
    decode_fm_delta,
    encode_bitx,
    encode_fm_delta,
    pair_tensors,
)
from delta_slim import Slim, measure_slim  # noqa: E402
from delta_tables import make_pair_table, make_summary_table  # noqa: E402

BASELINES = [
    pytest.param(encode_fm_delta, decode_fm_delta, id="FM-Delta-like"),
    pytest.param(encode_bitx, decode_bitx, id="BitX-like"),
]
Encode = Callable[[bytes, bytes, list[TensorPair]], bytes]
Decode = Callable[[bytes, bytes], bytes]


# --- the research baselines -------------------------------------------------------------------------------------------
@st.composite
def draw_pairs(draw: st.DrawFn) -> tuple[bytes, bytes, list[TensorPair]]:
    """Two files of random bytes, the second partly like the first, and any pairing of ranges inside them."""
    base = draw(st.binary(min_size=0, max_size=600))
    edits = draw(st.lists(st.tuples(st.integers(0, 599), st.integers(0, 255)), max_size=30))
    target = bytearray(base + draw(st.binary(max_size=60)))
    for at, value in edits:
        if at < len(target):
            target[at] = value
    pairs, at = [], 0
    for gap, elements, width, start in draw(
        st.lists(
            st.tuples(st.integers(0, 9), st.integers(1, 40), st.sampled_from((1, 2, 4, 8)), st.integers(0, 599)),
            max_size=6,
        )
    ):
        size = elements * width
        if at + gap + size <= len(target) and start + size <= len(base):
            pairs.append(TensorPair(start, at + gap, elements, width))
            at += gap + size
    return base, bytes(target), pairs


@pytest.mark.parametrize(("encode", "decode"), BASELINES)
@settings(max_examples=150, deadline=None)
@given(given_pairs=draw_pairs())
def test_a_baseline_gives_every_byte_back(
    encode: Encode, decode: Decode, given_pairs: tuple[bytes, bytes, list[TensorPair]]
) -> None:
    base, target, pairs = given_pairs
    assert decode(base, encode(base, target, pairs)) == target


@pytest.mark.parametrize(("encode", "decode"), BASELINES)
@pytest.mark.parametrize("code", ["<f2", "<f4", "<f8"])
def test_infinities_zeros_of_both_signs_and_nans_survive(encode: Encode, decode: Decode, code: str) -> None:
    odd = [0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 1.0, -1.0, 6e-8, -6e-8] * 10
    base = np.array(odd, code).tobytes()
    target = np.array(odd[::-1], code).tobytes()
    pairs = [TensorPair(0, 0, len(odd), int(code[2]))]
    assert decode(base, encode(base, target, pairs)) == target


@pytest.mark.parametrize(("encode", "decode"), BASELINES)
def test_small_steps_cost_a_baseline_fewer_bytes_than_the_file(encode: Encode, decode: Decode) -> None:
    rng = np.random.default_rng(1)
    old = rng.standard_normal(20_000).astype("<f4")
    new = old + (old * 1e-4 * rng.standard_normal(20_000)).astype("<f4")
    base, target = b"head" + old.tobytes() + b"tail", b"longer head" + new.tobytes() + b"tail"
    coded = encode(base, target, [TensorPair(4, 11, 20_000, 4)])
    assert decode(base, coded) == target
    assert len(coded) < 0.65 * len(target)


def test_a_tensor_that_stayed_costs_next_to_nothing() -> None:
    base = np.random.default_rng(2).standard_normal(50_000).astype("<f4").tobytes()
    pairs = [TensorPair(0, 0, 50_000, 4)]
    assert len(encode_fm_delta(base, base, pairs)) < 250
    assert len(encode_bitx(base, base, pairs)) < 250


def test_tensors_are_paired_by_name_then_by_nearest_values() -> None:
    rng = np.random.default_rng(3)
    one, two = (rng.standard_normal(100).astype("<f4") for _ in range(2))
    base, target = one.tobytes() + two.tobytes(), (two * 1.01).tobytes() + (one * 1.01).tobytes()
    unnamed = [Tensor(0, 100, 4), Tensor(400, 100, 4)]
    assert [pair.base for pair in pair_tensors(base, target, (unnamed, unnamed))] == [400, 0]
    named = [Tensor(0, 100, 4, "a"), Tensor(400, 100, 4, "b")]
    assert [pair.base for pair in pair_tensors(base, target, (named, named))] == [0, 400]
    assert pair_tensors(base, target, (unnamed, [Tensor(0, 50, 4)])) == []


def test_the_entropy_coder_comes_near_the_entropy() -> None:
    rng = np.random.default_rng(4)
    symbols = rng.geometric(0.3, 50_000).clip(max=100).astype(np.uint8)
    counts = np.bincount(symbols, minlength=130)
    tables, frequencies = np.zeros(len(symbols), np.int64), make_frequencies(counts)[None]
    states, words = encode_symbols(symbols, tables, frequencies)
    assert (decode_symbols(states, words, tables, frequencies) == symbols).all()
    share = counts[counts > 0] / len(symbols)
    assert len(states + words) < 1.005 * -(share * np.log2(share)).sum() * len(symbols) / 8 + 140


# --- the peers --------------------------------------------------------------------------------------------------------
def test_peers_are_measured_once_and_again_when_a_file_changes(tmp_path: Path) -> None:
    base = np.random.default_rng(5).bytes(3_000)
    target = base[:1_500] + b"new" + base[1_500:]
    peers = ("ZIP -9", "xz -9e", "zstd -19", "patch-from", "hdiffpatch", *RESEARCH)
    found = measure_peers(base, target, known={}, peers=peers)
    sizes = {get_peer(key): size for key, size in found.items()}
    assert set(sizes) == set(peers)
    assert max(sizes["hdiffpatch"], sizes["patch-from"]) < 100
    assert min(sizes["ZIP -9"], sizes["xz -9e"], sizes["zstd -19"]) > 3_000
    cache = PeerCache.read(tmp_path / "sub" / "cache.json")
    cache.sizes.update(dict.fromkeys(found, 7))
    cache.write()
    again = PeerCache.read(cache.path)
    assert set(measure_peers(base, target, known=again.sizes, peers=peers).values()) == {7}
    assert 7 not in measure_peers(base, target + b"!", known=again.sizes, peers=peers).values()
    assert PeerCache.read(cache.path, fresh=True).sizes == {}


def test_a_key_names_the_base_only_where_it_counts() -> None:
    assert make_key("xz -9e", b"one", b"target") == make_key("xz -9e", b"two", b"target")
    assert make_key("bsdiff", b"one", b"target") != make_key("bsdiff", b"two", b"target")


def test_a_tool_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert [text.split(":")[0] for text in find_missing()] == ["xdelta3"]
    assert measure_peers(b"base", b"target", known={}, peers=("xdelta3",)) == {}


# --- the pairs --------------------------------------------------------------------------------------------------------
def write_index(folder: Path, kind: str) -> Path:
    index = folder / "corpus.json"
    index.write_text(json.dumps([{"class": kind, "name": "one", "base": "a/v1.onnx", "target": "a/v2.onnx"}]))
    return index


def test_the_corpus_is_read_beside_its_index(tmp_path: Path) -> None:
    (pair,) = read_corpus(write_index(tmp_path, "head-only"))
    assert (pair.kind, pair.base) == ("head-only", tmp_path / "a" / "v1.onnx")


def test_no_corpus_and_an_unknown_class_are_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is not here"):
        read_corpus(tmp_path / "corpus.json")
    with pytest.raises(SystemExit, match=r"expected a class of .*, found other"):
        read_corpus(write_index(tmp_path, "other"))


def test_shared_pairs_are_two_models_whatever_lies_beside_them(tmp_path: Path) -> None:
    assert find_shared_pairs(tmp_path) == []
    folder = tmp_path / "teachable_fp32_head_retrain"
    folder.mkdir()
    for name in ("v1.tflite", "v2.tflite", "v2_labels.txt"):
        (folder / name).touch()
    (pair,) = find_shared_pairs(tmp_path)
    assert (pair.kind, pair.base.name, pair.target.name) == ("head-only", "v1.tflite", "v2.tflite")


def test_full_downloads_are_asked_of_float_models_with_weights_of_their_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    base = rng.standard_normal(500).astype("<f4")
    model = name_pair(tmp_path)
    write_large_pair([Weights(base, base)], 4_000, model)
    opaque = VersionPair("retrained", "opaque", model.base, tmp_path / "opaque")
    opaque.target.write_bytes(rng.bytes(4_000))
    shared = VersionPair("metadata", "third-party: one", model.target, model.base)
    pairs = [replace(model, kind="head-only"), opaque, model, replace(model, name="again"), shared]
    assert list_float_models([], pairs) == [(model.name, model.target), (shared.name, shared.target)]
    demo = [("demo", shared.target), ("quantised", opaque.target)]
    assert list_float_models(demo, pairs) == [("demo", shared.target), (model.name, model.target)]


def test_models_are_found_among_ours_and_beside_the_third_party_pairs(tmp_path: Path) -> None:
    places = "ours/detector/1.0.0/a.onnx", "ours/detector/1.0.0/labels.txt", "theirs/hand/b.tflite", "theirs/pairs/c"
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    found = find_models(tmp_path / "ours", tmp_path / "theirs" / "pairs")
    assert [name for name, _ in found] == ["detector/1.0.0/a.onnx", "third-party: b.tflite"]


def name_pair(folder: Path, kind: str = "fine-tune") -> VersionPair:
    return VersionPair(kind, "generated", folder / "v1.onnx", folder / "v2.onnx")


def test_a_generated_pair_is_a_model_of_the_asked_size_and_the_same_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    base = rng.standard_normal(500).astype("<f4")
    weights = [Weights(base, (base * 1e-3).astype("<f4")), Weights(base[:100], np.zeros(100, "<f4"))]
    pair = name_pair(tmp_path)
    write_large_pair(weights, 50_000, pair)
    old, new = pair.base.read_bytes(), pair.target.read_bytes()
    assert 50_000 <= len(old) < 60_000
    ranges = find_float_ranges(old)
    assert [one.elements for one in ranges] == [500, 100] * (len(ranges) // 2)
    assert sum(one.elements * 4 for one in ranges) >= 50_000
    moved = [old[a.start : a.end] != new[b.start : b.end] for a, b in zip(ranges, find_float_ranges(new), strict=True)]
    assert moved == [True, False] * (len(ranges) // 2)
    write_large_pair(weights, 50_000, pair)
    assert (pair.base.read_bytes(), pair.target.read_bytes()) == (old, new)
    write_large_pair(weights, 50_000, name_pair(tmp_path, METADATA_KIND))
    assert pair.target.read_bytes()[ranges[0].start + 7 :] == old[ranges[0].start :]


def test_a_patch_that_gives_other_bytes_ends_the_bench(tmp_path: Path) -> None:
    for name, data in (("same", b"target"), ("wanted", b"target"), ("cut", b"targe"), ("other", b"tarGet")):
        (tmp_path / name).write_bytes(data)
    require_same(tmp_path / "same", tmp_path / "wanted")
    for name in ("cut", "other"):
        with pytest.raises(SystemExit, match="does not give the target"):
            require_same(tmp_path / name, tmp_path / "wanted")


# --- ours, in children ------------------------------------------------------------------------------------------------
def test_ours_is_made_and_applied_in_children_that_tell_their_costs(tmp_path: Path) -> None:
    base = np.random.default_rng(7).standard_normal(2_000).astype("<f4")
    pair = name_pair(tmp_path)
    write_large_pair([Weights(base, base * np.float32(1e-4))], 60_000, pair)
    patch, full = tmp_path / "patch", tmp_path / "full"
    made, alone = make_patch(pair.base, pair.target, patch), make_full(pair.target, full)
    assert made.size_bytes == patch.stat().st_size < alone.size_bytes == full.stat().st_size < 60_000
    assert made.way
    for one, cost in (
        (made, apply_patch(pair.base, patch, pair.target)),
        (alone, apply_patch(None, full, pair.target)),
    ):
        assert min(one.cost.cpu_s, cost.cpu_s) > 0
        assert cost.memory_bytes <= one.memory_bytes


def test_a_child_that_fails_ends_the_bench(tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(b"no patch")
    with pytest.raises(SystemExit, match="the child ended early: weigh"):
        apply_patch(None, tmp_path / "damaged", tmp_path / "damaged")


# --- the rules --------------------------------------------------------------------------------------------------------
MADE = Made(size_bytes=1_000, way="tensors", memory_bytes=50 * MB, cost=Cost(20.0, 80 * MB))
APPLY = Cost(cpu_s=0.5, memory_bytes=40 * MB)
PEERS = {**dict.fromkeys(GENERIC, 20_000), **dict.fromkeys(RESEARCH, 1_200)}
FULL = FullRow("model", 5_000, {"ZIP -9": 1_100, "xz -9e": 1_050, "zstd -19": 1_010}, MADE)


def make_pair(kind: str, *, ours: Made = MADE, apply: Cost = APPLY, **values: object) -> PairRow:
    row = PairRow(kind, "a pair", 5 * MB, MB, PEERS, ours, apply)
    return replace(row, **values)  # type: ignore[arg-type]


def make_large(size_mb: int, *, times: float = 1.0, grows: str = "") -> LargeRow:
    """A model whose costs are in proportion, but for the one that `grows`."""

    def scale(name: str, value: float) -> float:
        return value * size_mb / 100 * (times if grows == name else 1)

    ours = Made(1_000, "tensors", 95 * MB, Cost(scale("make CPU", 60), int(scale("make memory", 500 * MB))))
    apply = Cost(scale("apply CPU", 6), int(scale("apply memory", 9 * MB)))
    return LargeRow("fine-tune", size_mb * MB, MB, ours, apply)


GOOD = [make_pair(kind) for kind in KINDS]
LARGE = [make_large(100), make_large(500)]


def judge(*pairs: PairRow, full: FullRow = FULL, large: list[LargeRow] = LARGE) -> list[str]:
    """Shortfalls of the good rows, where each given pair stands for its class."""
    kinds = {row.kind for row in pairs}
    return find_shortfalls([*pairs, *(row for row in GOOD if row.kind not in kinds)], [full], large)


def test_figures_that_are_met_hold() -> None:
    assert judge() == []


def size(size_bytes: int) -> Made:
    return replace(MADE, size_bytes=size_bytes)


def best(size_bytes: int) -> dict[str, int]:
    return {**PEERS, "xdelta3": size_bytes}


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (make_pair("fine-tune", peers=best(1_490)), ["fine-tune: geometric mean 1.490, at least 1.5 asked"]),
        (make_pair("head-only", peers=best(1_110)), ["head-only: geometric mean 1.110, at least 1.12 asked"]),
        (make_pair("retrained", peers=best(1_090)), ["retrained: geometric mean 1.090, at least 1.1 asked"]),
        (make_pair("structure", peers=best(9_900)), ["structure, a pair: xdelta3 / ours is 9.90, at least 10 asked"]),
        (
            make_pair("metadata", peers=best(935)),
            ["metadata, a pair: 65 bytes above xdelta3 (935), at most 64 asked"],
        ),
        (
            make_pair("fine-tune", peers={**PEERS, "FM-Delta-like": 1_140}),
            ["fine-tune: FM-Delta-like / ours is 1.140, at least 1.15 asked"],
        ),
        (
            make_pair("fine-tune", peers={**PEERS, "BitX-like": 1_140}),
            ["fine-tune: BitX-like / ours is 1.140, at least 1.15 asked"],
        ),
        (
            make_pair("metadata", apply=replace(APPLY, memory_bytes=50 * MB + 1)),
            ["metadata, a pair: applying took 50,000,001 bytes of memory, its header states 50,000,000"],
        ),
        (
            make_pair("metadata", ours=replace(MADE, memory_bytes=96 * MB + 1)),
            ["metadata, a pair: the header states 96,000,001 bytes of memory, at most 96,000,000 allowed"],
        ),
        (
            make_pair("metadata", tensor_bytes=40 * MB, ours=replace(MADE, memory_bytes=112 * MB + 1)),
            ["metadata, a pair: the header states 112,000,001 bytes of memory, at most 112,000,000 allowed"],
        ),
        (
            make_pair("metadata", apply=replace(APPLY, cpu_s=0.7)),
            ["metadata, a pair: applying gave 7.1 MB a CPU second, at least 8 asked"],
        ),
        (
            make_pair("metadata", ours=replace(MADE, remainder_only=True)),
            ["metadata, a pair: applying gave 10.0 MB a CPU second, at least 40 asked"],
        ),
        (
            make_pair("metadata", target_bytes=MB, apply=replace(APPLY, cpu_s=1.01)),
            ["metadata, a pair: applying took 1.01 CPU s, at most 1 asked"],
        ),
        (
            make_pair("metadata", ours=replace(MADE, cost=Cost(60.1, MB))),
            ["metadata, a pair: making took 60.1 CPU s, at most 60 asked"],
        ),
    ],
    ids=lambda value: value[0].split(":")[-1].strip()[:40] if isinstance(value, list) else "",
)
def test_each_rule_of_a_pair_notices_its_shortfall(row: PairRow, wanted: list[str]) -> None:
    assert judge(row) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_64_bytes_above_the_best_peer_falls_short_in_every_class(kind: str) -> None:
    good = [make_pair(kind, name=f"good {index}", peers=best(200_000)) for index in range(9)]
    short = judge(*good, make_pair(kind, peers=best(935)))
    assert f"{kind}, a pair: 65 bytes above xdelta3 (935), at most 64 asked" in short
    assert not [text for text in judge(*good, make_pair(kind, peers=best(936))) if "above" in text]


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_without_a_pair_falls_short(kind: str) -> None:
    rows = [row for row in GOOD if row.kind != kind]
    assert f"{kind}: no pair was measured" in find_shortfalls(rows, [FULL], LARGE)


def test_a_larger_model_may_take_longer_to_make_in_proportion() -> None:
    slow = make_pair("retrained", target_bytes=20 * MB, ours=replace(MADE, cost=Cost(119.0, MB)))
    assert not [text for text in judge(slow) if "making" in text]
    slower = replace(slow, ours=replace(MADE, cost=Cost(121.0, MB)))
    assert [text for text in judge(slower) if "making" in text] == [
        "retrained, a pair: making took 121.0 CPU s, at most 120 asked"
    ]


@pytest.mark.parametrize("peer", ["ZIP -9", "xz -9e", "zstd -19"])
def test_a_full_download_no_smaller_than_a_peer_falls_short(peer: str) -> None:
    row = replace(FULL, peers={**FULL.peers, peer: 1_000})
    assert judge(full=row) == [f"full download, model: 1,000 bytes, {peer} takes 1,000"]


@pytest.mark.parametrize(
    ("grows", "name"),
    [
        ("make CPU", "CPU time of making"),
        ("make memory", "memory of making"),
        ("apply CPU", "CPU time of applying"),
        ("apply memory", "memory of applying"),
    ],
)
def test_a_cost_that_grows_faster_than_the_model_falls_short(grows: str, name: str) -> None:
    large = [make_large(100), make_large(500, times=1.6, grows=grows)]
    assert f"{name} per MB grows 1.60 times up to 500 MB, at most 1.5 asked" in judge(large=large)
    assert judge(large=[make_large(100), make_large(500, times=1.3, grows=grows)]) == []


def test_a_large_model_obeys_the_rules_of_applying() -> None:
    hungry = replace(LARGE[1], apply=Cost(30.0, 200 * MB))
    assert judge(large=[LARGE[0], hungry]) == [
        "generated, fine-tune, 500 MB: applying took 200,000,000 bytes of memory, its header states 95,000,000",
        "memory of applying per MB grows 4.44 times up to 500 MB, at most 1.5 asked",
    ]


def test_a_series_without_its_largest_model_falls_short() -> None:
    wanted = ["generated: no model of 500 MB was measured"]
    assert judge(large=[]) == judge(large=[make_large(100), make_large(400)]) == wanted


# --- the arithmetic ---------------------------------------------------------------------------------------------------
def test_a_class_is_summed_up_by_geometric_mean_median_and_worst() -> None:
    rows = [make_pair("fine-tune", peers=best(size_bytes)) for size_bytes in (1_000, 2_000, 8_000)]
    (one,) = [one for one in summarise(rows) if one.kind == "fine-tune"]
    assert (one.pairs, one.median, one.worst) == (3, 2.0, 1.0)
    assert one.mean == pytest.approx(16 ** (1 / 3))


def test_research_is_compared_on_fine_tunes_alone() -> None:
    rows = [make_pair("fine-tune", ours=size(600)), make_pair("retrained", ours=size(1_200))]
    assert measure_research(rows) == {peer: pytest.approx(2.0) for peer in RESEARCH}


def test_the_best_peer_is_generic_and_here() -> None:
    row = make_pair("fine-tune", peers={"xz -9e": 900, "bsdiff": 800, "BitX-like": 100})
    assert row.best == ("bsdiff", 800)
    assert "missing" in make_pair_table([row])


def test_growth_compares_the_largest_with_the_smallest_per_mb() -> None:
    assert measure_growth([make_large(500), make_large(100)])["CPU time of applying"] == pytest.approx(1.0)
    assert measure_growth([make_large(100)]) == {}


def test_page_and_figures_hold_every_row_and_every_shortfall() -> None:
    slim = Slim("how slim", [{"pair": "slim"}], ["slim: too large"])
    bad = make_pair("fine-tune", name="the bad one", ours=size(30_000))
    found = Findings([*GOOD, bad], [FULL], LARGE, slim, ["making a pair"])
    page = make_section(make_parts(found), 1.0)
    assert page.count("| a pair |") == 2 * len(GOOD)
    assert "| the bad one |" in page
    assert "| model |" in page and "how slim" in page
    assert "slim: too large" in found.shortfalls and "not measured, time was up: making a pair" in found.shortfalls
    assert "CPU time of making 1.00" in page
    figures = json.loads(json.dumps(make_figures(found)))
    assert figures["shortfalls"] == found.shortfalls != []
    assert [len(figures[name]) for name in ("classes", "pairs", "full", "large", "slim")] == [7, 8, 1, 2, 1]


def test_the_table_says_what_holds() -> None:
    lines = make_summary_table([make_pair("fine-tune", peers=best(1_400)), make_pair("metadata")]).splitlines()
    found = {line.split(" | ")[0].strip("| "): line.split(" | ")[-1].strip("| ") for line in lines[2:]}
    assert (found["fine-tune"], found["metadata"], found["retrained"]) == ("no", "yes", "no")


# --- in time ----------------------------------------------------------------------------------------------------------
def test_the_heaviest_step_begins_first_and_answers_keep_their_order() -> None:
    heard: list[str] = []
    steps = [Step(f"of {weight}", weight, lambda weight=weight: weight * 10) for weight in (1, 3, 2)]
    assert Lanes(1, math.inf).run(steps, lambda step, value: heard.append(f"{step.name}: {value}")) == [10, 30, 20]
    assert sorted(heard) == ["of 1: 10", "of 2: 20", "of 3: 30"]
    begun: list[int] = []
    Lanes(1, math.inf).run([Step("", weight, lambda weight=weight: begun.append(weight)) for weight in (1, 3, 2)], tell)
    assert begun == [3, 2, 1]


def test_what_has_not_begun_in_time_is_left_out_and_named() -> None:
    lanes = Lanes(1, 0.0)
    assert lanes.run([Step("late", 1, lambda: 1)], tell) == [None]
    assert lanes.skipped == ["late"]


def test_a_step_that_fails_ends_the_bench() -> None:
    with pytest.raises(ZeroDivisionError):
        Lanes(2, math.inf).run([Step("bad", 1, lambda: 1 // 0)], tell)


def tell(step: object, value: object) -> None:
    """Nobody listens."""


# --- slim versions ----------------------------------------------------------------------------------------------------
def write_script(folder: Path, lines: str) -> Path:
    script = folder / "slim.py"
    script.write_text(f"import json, pathlib, sys\nfigures = pathlib.Path(sys.argv[2])\n{lines}\n")
    return script


def test_slim_figures_are_taken_over(tmp_path: Path) -> None:
    script = write_script(
        tmp_path, "figures.write_text(json.dumps({'rows': [1], 'shortfalls': ['a']}))\nprint('# Slim')\nsys.exit(1)"
    )
    assert measure_slim(tmp_path, script=script) == Slim("# Slim\n", [1], ["a"])  # type: ignore[list-item]


def test_slim_versions_that_were_not_measured_fall_short(tmp_path: Path) -> None:
    script = write_script(tmp_path, "sys.exit('no scenes')")
    assert measure_slim(tmp_path, script=script).shortfalls == ["slim: not measured: no scenes"]
    script = write_script(tmp_path, "figures.write_text(json.dumps({'rows': [], 'shortfalls': []}))\nsys.exit(3)")
    assert measure_slim(tmp_path, script=script).shortfalls == ["slim: slim.py ended with 3"]
