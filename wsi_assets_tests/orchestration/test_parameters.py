"""Parameters: reading ``parameters.yaml``, storing given values, and errors in one line."""

import dagster as dg
import pydantic
import pytest
import yaml

from wsi_assets.errors import ConfigError
from wsi_assets.orchestration.artefact import all_artefacts
from wsi_assets.orchestration.config import (
    ParameterFile,
    ParameterSet,
    check_launchpad,
    given_in,
    launchpad_config,
    options_of,
    parse_settings,
    read_parameters,
)

ASSETS = {artefact.name: artefact for artefact in all_artefacts()}
INDEX, SAMPLED, MODEL = ASSETS["slide_index"], ASSETS["sampled_index"], ASSETS["trained_model"]


@pytest.mark.parametrize("asset", ASSETS)
def test_every_option_has_a_description_and_the_launchpad_shows_its_default(asset):
    options = ASSETS[asset].options.model_fields
    form = launchpad_config(ASSETS[asset])
    for name, option in options.items():
        assert option.description.endswith("."), f"{asset}.{name}"
        assert "Default: " in form.model_fields[name].description
        if any(getattr(bound, "ge", None) is not None for bound in option.metadata):
            assert "At least" in form.model_fields[name].description
    assert given_in(ASSETS[asset], form()) == {}, "an empty form gives nothing"


@pytest.mark.parametrize("asset", ASSETS)
def test_dagster_accepts_the_config_of_every_asset(asset):
    @dg.op
    def takes(config: launchpad_config(ASSETS[asset])):
        pass

    assert takes.config_schema is not None


def test_a_choice_in_the_launchpad_becomes_its_value():
    seen = {}

    @dg.asset
    def index(config: launchpad_config(INDEX)):
        seen.update(given_in(INDEX, config))

    dg.materialize(
        [index], run_config={"ops": {"index": {"config": {"label_rule": "center", "patch_size": 64}}}}
    )
    assert seen == {"label_rule": "center", "patch_size": 64}


def test_an_impossible_launchpad_value_of_a_later_asset_is_refused_before_the_first():
    check_launchpad({"ops": {"slide_index": {"config": {"label_rule": "center"}}, "elsewhere": {}}})
    with pytest.raises(ConfigError, match=r"trained_model\.lr=-1"):
        check_launchpad({"ops": {"slide_index": {}, "trained_model": {"config": {"lr": -1}}}})


def test_the_more_specific_value_wins():
    said = ParameterSet(
        {
            "seed": 1,
            "trained_model": {"seed": 2},
            "levels": {4: {"seed": 3}, "5": {"trained_model": {"seed": 4}}},
        }
    )
    seeds = {level: options_of(MODEL, level, said).seed for level in ("3", "4", "5")}
    assert seeds == {"3": 2, "4": 3, "5": 4}
    assert options_of(SAMPLED, "3", said).seed == 1
    assert options_of(MODEL, "5", said, parse_settings(["seed=9"])).seed == 9


def test_numbers_and_none_are_read_in_common_notations():
    given = parse_settings(
        ["lr=1e-3", "max_epochs=2", "normal_per_tumor=none", "weights=none", "stride=null"]
    )
    assert options_of(MODEL, "1", given).lr == 1e-3
    assert options_of(MODEL, "1", given).weights == "none"
    assert options_of(SAMPLED, "1", given).normal_per_tumor is None
    assert options_of(INDEX, "1", given).stride is None


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"max_epoch": 2}, "max_epochs"),
        ({"max_epochs": 0}, "max_epochs"),
        ({"levels": {"4": {"trained_model": {"lr": "fast"}}}}, "levels.4.trained_model.lr"),
        ({"levels": {"x": {}}}, "levels.x"),
        ({"levels": {"4": {"base_mag": 20}}}, "levels.4.base_mag"),
        ({"label_rule": "most"}, "label_rule"),
        ({"slide_index": {"max_epochs": 2}}, "trained_model.max_epochs"),
        ({"slide_index": {"patchsize": 2}}, "slide_index.patch_size"),
        ({"slide_index": 3}, "slide_index"),
        ({"nothing_like_it": 2}, "nothing_like_it"),
        ({"lr": float("nan")}, "lr"),
    ],
)
def test_a_wrong_parameter_is_reported_in_one_line_with_its_place(content, names):
    with pytest.raises(ConfigError) as caught:
        ParameterSet(content, "parameters.yaml")
    assert names in str(caught.value)
    assert str(caught.value).startswith("parameters.yaml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["- a\n- list\n", "a: [unclosed\n", None])
def test_an_unreadable_file_is_reported_in_one_line(tmp_path, content):
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_parameters(file)
    assert "run.yaml" in str(caught.value)


def test_a_setting_without_equals_sign_is_reported_in_one_line():
    with pytest.raises(ConfigError):
        parse_settings(["max_epochs"])


@pytest.fixture
def file(tmp_path) -> ParameterFile:
    return ParameterFile(tmp_path / "storage" / "parameters.yaml")


def test_a_given_value_is_stored_for_its_level_only(file):
    assert len(file.remember(INDEX, "4", {"patch_size": 128})) == 1
    assert options_of(INDEX, "4", file.read()).patch_size == 128
    assert options_of(INDEX, "3", file.read()).patch_size == 256


def test_a_given_value_equal_to_the_current_one_is_not_written(file):
    assert file.remember(INDEX, "4", {"patch_size": 256}) == []
    assert not file.path.exists()


def test_values_of_slide_assets_are_stored_for_all_levels_and_others_stay(file):
    file.path.parent.mkdir()
    file.path.write_text("min_tissue: 0.3\nlevels:\n  '4':\n    patch_size: 64\n")
    file.remember(ASSETS["tissue_regions"], None, {"base_mag": 20.0})
    file.remember(INDEX, "4", {"stride": 32})
    assert yaml.safe_load(file.path.read_text()) == {
        "min_tissue": 0.3,
        "tissue_regions": {"base_mag": 20.0},
        "levels": {"4": {"patch_size": 64, "slide_index": {"stride": 32}}},
    }
    options = options_of(INDEX, "4", file.read())
    assert (options.patch_size, options.stride, options.min_tissue) == (64, 32, 0.3)


def test_an_impossible_value_is_not_stored(file):
    with pytest.raises(ConfigError):
        file.remember(INDEX, "4", {"patch_size": -1})
    assert not file.path.exists()


def test_all_options_are_plain_models():
    assert all(issubclass(artefact.options, pydantic.BaseModel) for artefact in ASSETS.values())
