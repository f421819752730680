"""Pairs of nets trained here."""

from __future__ import annotations

from scripts.delta_corpus.pairs import Pair


def list_pairs() -> list[Pair]:
    """The pairs of nets trained here."""
    return []
