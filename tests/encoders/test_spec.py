"""Claims about the spec that is stored with a space."""

import dataclasses
import json

import pytest

from embedstore.encoders import EncoderSpec
from embedstore.encoders.weights import MINILM_SPEC
from embedstore.errors import InvalidInput, UnsupportedFormat


def test_a_spec_survives_its_json():
    spec = dataclasses.replace(MINILM_SPEC, location="/somewhere")
    assert EncoderSpec.from_json(spec.to_json()) == spec


def test_minilms_fingerprint_never_changes():
    assert MINILM_SPEC.fingerprint == "b9713cd5a9de6c12d50a216eaa700ab1"


def test_location_and_name_are_not_in_the_fingerprint():
    moved = dataclasses.replace(MINILM_SPEC, location="/elsewhere", name="st:/elsewhere")
    assert moved.fingerprint == MINILM_SPEC.fingerprint


@pytest.mark.parametrize(
    "change", [{"dim": 385}, {"max_tokens": 128}, {"layer": 1}, {"pool": "max"}, {"normalize": False},
               {"weights": "0"}, {"tokenizer": "0"}, {"pipeline": "0"}, {"family": "other"}],
)  # fmt: skip
def test_everything_else_is(change):
    assert dataclasses.replace(MINILM_SPEC, **change).fingerprint != MINILM_SPEC.fingerprint


def test_it_describes_itself_in_a_line():
    assert MINILM_SPEC.describe() == "minilm (384 numbers, 256 tokens, weights 53aa5117…)"


def test_another_version_is_refused():
    fields = json.loads(MINILM_SPEC.to_json()) | {"version": 2}
    with pytest.raises(UnsupportedFormat, match="upgrade"):
        EncoderSpec.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    "text", ["", "[]", "not json", '{"version": 1}', '{"version": 1, "dim": true}'],
)  # fmt: skip
def test_what_is_not_a_spec_is_refused(text):
    with pytest.raises(InvalidInput):
        EncoderSpec.from_json(text)


def test_a_field_of_another_type_is_refused():
    fields = json.loads(MINILM_SPEC.to_json()) | {"dim": "384"}
    with pytest.raises(InvalidInput, match="dim"):
        EncoderSpec.from_json(json.dumps(fields))
