"""What a run measures on the device: a group of texts at a time, without an intervention of anybody's."""

from __future__ import annotations

from msgspec import Struct

from ..domain.refs import Exclusion


class ProfiledFeatures(Struct, frozen=True, kw_only=True):
    """What a profile found where an SAE is attached."""

    maxima: dict[int, float] = {}
    """Feature → its largest activation."""
    median_norm: float | None = None


class TextGroup(Struct, frozen=True, kw_only=True):
    """Texts that are measured together; the same group gives the same numbers, whatever else the device does."""

    attach_position: int
    """Of the SAE."""
    texts: tuple[tuple[int, ...], ...]
    """Token ids, of each text at least one."""
    exclude: tuple[Exclusion, ...] = ("sink",)


class EvaluatedGroup(Struct, frozen=True, kw_only=True):
    """Sums over a group, of which those of all groups make an evaluation. In float64."""

    sums: dict[str, float]
    """See `domain.measuring.summaries`."""
    mean_sums: tuple[float, ...]
    """Per dimension, the sum of what the SAE should give at the positions that count."""
    firing: tuple[int, ...]
    """Per feature, at how many of these positions it is on."""
    texts_firing: tuple[int, ...]
    """Per feature, in how many texts it is on at one of them."""


class ComparedRows(Struct, frozen=True, kw_only=True):
    """What an SAE's weights say of each feature."""

    encoder_bias: tuple[float, ...]
    """0 without one; of a gated SAE that of its magnitudes."""
    encoder_norm: tuple[float, ...]
    encoder_decoder_cosine: tuple[float, ...] | None
    """None where what it reads and what it writes differ in width."""
    nearest_encoder_cosine: tuple[float, ...]
    """The largest cosine with the encoder column of another feature."""
    nearest_decoder_cosine: tuple[float, ...]


class ReadGroup(Struct, frozen=True, kw_only=True):
    """What an SAE reads in a group: the activations that are not 0 at the positions that count. Positions are numbered
    through all texts of the group."""

    features: bytes
    """uint32 each, ascending; within a feature by position."""
    positions: bytes
    """uint32"""
    values: bytes
    """float32"""
    norms: bytes
    """float32, |x| at every position."""
    excluded: bytes
    """One byte for every position: 1 if it does not count."""
