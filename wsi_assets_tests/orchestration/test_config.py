"""Parameters: one name, one home, one clear line when wrong."""

from __future__ import annotations

import pytest

from wsi_assets.errors import ConfigError
from wsi_assets.orchestration.config import (
    ASSET_CONFIG,
    build_configs,
    parse_settings,
    read_config_file,
    run_config,
)


@pytest.mark.parametrize("asset", ASSET_CONFIG)
def test_every_parameter_says_what_it_does(asset):
    for name, field in ASSET_CONFIG[asset].model_fields.items():
        assert field.description, f"{asset}.{name}"
        assert field.description.endswith(".")


def test_a_flat_name_reaches_every_asset_that_has_it():
    configs = build_configs({"seed": 7})
    assert configs["sampled_index"].seed == configs["trained_model"].seed == 7


def test_a_name_with_its_asset_reaches_that_asset_only():
    configs = build_configs({"seed": 7, "trained_model.seed": 8})
    assert (configs["sampled_index"].seed, configs["trained_model"].seed) == (7, 8)


def test_numbers_are_read_as_people_write_them():
    assert parse_settings(["lr=1e-3", "max_epochs=2", "tta=true", "stride="]) == {
        "lr": 1e-3,
        "max_epochs": 2,
        "tta": True,
        "stride": "",
    }


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"max_epoch": 2}, "max_epochs"),
        ({"max_epochs": 0}, "max_epochs=0"),
        ({"lr": "fast"}, "lr='fast'"),
        ({"label_rule": "most"}, "label_rule"),
        ({"no_asset.lr": 1}, "no_asset.lr"),
        ({"slideindex.patch_size": 2}, "Did you mean 'slide_index.patch_size'"),
        ({"slide_index.max_epochs": 2}, "Did you mean 'trained_model.max_epochs'"),
        ({"slide_index.patchsize": 2}, "Did you mean 'slide_index.patch_size'"),
        ({"nothing_like_it": 2}, "The README lists every parameter"),
    ],
)
def test_a_wrong_parameter_is_one_clear_line(values, says):
    with pytest.raises(ConfigError, match=says) as caught:
        build_configs(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", ["inf", "-inf", "nan"])
def test_no_parameter_is_infinite_or_not_a_number(number):
    floats = [
        f"{asset}.{name}"
        for asset, config in ASSET_CONFIG.items()
        for name, field in config.model_fields.items()
        if "float" in str(field.annotation)
    ]
    assert len(floats) > 10
    for name in floats:
        with pytest.raises(ConfigError, match="is not possible"):
            build_configs({name: float(number)})


def test_a_setting_without_equals_is_one_clear_line():
    with pytest.raises(ConfigError, match="key=value"):
        parse_settings(["max_epochs"])


def test_a_config_file_may_be_flat_or_grouped_by_asset(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("max_epochs: 3\nsampled_index:\n  seed: 9\n")
    configs = build_configs(read_config_file(str(file)))
    assert configs["trained_model"].max_epochs == 3
    assert (configs["sampled_index"].seed, configs["trained_model"].seed) == (9, 42)


@pytest.mark.parametrize("content", ["- a\n- list\n", "a: [unclosed\n", None])
def test_a_config_file_that_is_none_is_one_clear_line(tmp_path, content):
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        read_config_file(str(file))


def test_a_config_file_that_is_missing_is_told_as_every_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.yaml: does not exist"):
        read_config_file(str(tmp_path / "run.yaml"))


def test_the_run_configuration_gives_each_asset_its_parameters():
    config = run_config(build_configs({"max_epochs": 2}), ["trained_model"])
    assert config["ops"]["trained_model"]["config"]["max_epochs"] == 2
