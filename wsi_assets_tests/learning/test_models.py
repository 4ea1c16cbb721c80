import io
import json
import pickle
import urllib.error

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision import models

from wsi_assets.errors import ModelError
from wsi_assets.learning import load_model
from wsi_assets.learning.checkpoints import initial_model
from wsi_assets.learning.models import build_model, check_weights
from wsi_assets_tests.learning.made import cohort, quick, run


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    return run(cohort(), quick(max_epochs=1), tmp_path_factory.mktemp("model")).best_path


def copied(best, folder, *, card=True):
    (folder / "best.pt").write_bytes(best.read_bytes())
    if card:
        (folder / "best.json").write_bytes(best.with_suffix(".json").read_bytes())
    return folder / "best.pt"


def test_a_model_is_loaded_from_its_file_and_from_its_folder(best):
    loaded = load_model(best)
    assert (loaded.patch_size, loaded.card["level"]) == (32, 4)
    pixels = torch.from_numpy(cohort().pixels[:3])
    with torch.inference_mode():
        expected = loaded.classifier()(pixels)
        torch.testing.assert_close(load_model(best.parent).classifier()(pixels.float()), expected)
        torch.testing.assert_close(expected.sum(dim=1), torch.ones(3))


def test_weights_saved_from_a_wrapped_network_load(best, tmp_path):
    path = copied(best, tmp_path)
    state = torch.load(best, weights_only=True)
    torch.save({f"module.{key}": value for key, value in state.items()}, path)
    loaded = load_model(path).model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_weights_without_a_description_are_refused(best, tmp_path):
    with pytest.raises(ModelError):
        load_model(copied(best, tmp_path, card=False))


class Hostile:
    def __reduce__(self):
        return print, ("code has run",)


def hostile():
    buffer = io.BytesIO()
    torch.save({"weight": Hostile()}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 torn", pickle.dumps(Hostile(), protocol=2), hostile(), b"\x80\x02]."],
    ids=["empty", "torn", "hostile pickle", "hostile file", "a list"],
)
def test_files_that_are_not_models_are_refused_without_running_their_code(best, tmp_path, content, capsys):
    path = copied(best, tmp_path)
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert caught.value.path == str(path)
    assert "code has run" not in capsys.readouterr().out


@pytest.mark.parametrize("share", [0.3, 0.99])
def test_a_truncated_model_is_refused(best, tmp_path, share):
    path = copied(best, tmp_path)
    path.write_bytes(best.read_bytes()[: int(best.stat().st_size * share)])
    with pytest.raises(ModelError):
        load_model(path)


@pytest.mark.parametrize(
    "card", ["", "[]", "{", "{}", '{"model": {"name": "resnet18"}}', '{"model": {"name": 7}}', "[" * 9999]
)
def test_a_description_that_is_damaged_or_of_another_network_is_refused(best, tmp_path, card):
    path = copied(best, tmp_path)
    (tmp_path / "best.json").write_text(card)
    with pytest.raises(ModelError):
        load_model(path)


@pytest.mark.parametrize("name", ["resnet19", "../etc", ""])
def test_unknown_networks_are_refused(name):
    with pytest.raises(ModelError):
        build_model(name, patch_size=64)


@pytest.mark.parametrize("size", [0, -1, 5000, 2**31, 10**400, "64", None])
def test_an_impossible_patch_size_is_refused_before_memory_is_allocated(size):
    with pytest.raises(ModelError):
        build_model("resnet18", patch_size=size)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto"])
def test_networks_of_timm_have_two_outputs_and_their_own_normalization(name):
    model, architecture = build_model(name, patch_size=64)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 2)
    assert architecture.mean == timm.get_pretrained_cfg(name).mean
    assert architecture.input_size is None


def test_patches_are_scaled_for_a_network_with_a_fixed_input_size():
    model, architecture = build_model("vit_tiny_patch16_224", patch_size=32)
    inputs = architecture.inputs(torch.full((2, 32, 32, 3), 127.5))
    assert inputs.shape == (2, 3, 224, 224)
    assert model(inputs).shape == (2, 2)
    assert architecture.mean == (0.5, 0.5, 0.5)
    torch.testing.assert_close(inputs, torch.zeros_like(inputs), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "wrapped", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}]
)
def test_local_weights_of_a_thousand_classes_fill_all_but_the_classifier(tmp_path, wrapped):
    pretrained = models.resnet18(weights=None, num_classes=1000).state_dict()
    torch.save(wrapped({f"module.{key}": value for key, value in pretrained.items()}), tmp_path / "w.pth")
    model, _ = build_model("resnet18", patch_size=32, weights=str(tmp_path / "w.pth"))
    own = model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in pretrained.items() if not key.startswith("fc."))
    assert own["fc.weight"].shape == (2, 512)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "convnext_atto"])
def test_a_new_classifier_on_given_weights_starts_with_equal_probabilities(tmp_path, name):
    torch.save(timm.create_model(name, num_classes=7).state_dict(), tmp_path / "w.pth")
    model, _ = build_model(name, patch_size=64, weights=str(tmp_path / "w.pth"))
    with torch.inference_mode():
        assert model.eval()(torch.randn(4, 3, 64, 64)).softmax(dim=1).eq(0.5).all()


@pytest.mark.parametrize(("patch_size", "side"), [(64, 224), (223, 224), (224, 224), (256, 256)])
def test_given_weights_see_small_patches_at_the_size_of_the_images_they_are_made_for(
    tmp_path, patch_size, side
):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "w.pth")
    _, architecture = build_model("resnet18", patch_size=patch_size, weights=str(tmp_path / "w.pth"))
    assert architecture.inputs(torch.zeros(1, patch_size, patch_size, 3)).shape == (1, 3, side, side)


@pytest.mark.parametrize("name", ["best.pt", ""])
def test_a_model_of_this_package_goes_on_as_its_description_says(best, tmp_path, name):
    path = copied(best, tmp_path)
    card = json.loads(path.with_name("best.json").read_text())
    card |= {"input_size": 48, "normalization": {"mean": [0.1] * 3, "std": [0.2] * 3}}
    path.with_name("best.json").write_text(json.dumps(card))
    model, architecture = initial_model("resnet18", patch_size=64, weights=str(path.parent / name))
    assert (architecture.name, architecture.input_size, architecture.mean) == ("tiny", 48, (0.1, 0.1, 0.1))
    given = torch.load(best, weights_only=True)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in given.items())


def test_a_classifier_of_two_classes_is_taken_from_the_given_weights(best):
    model, _ = build_model("tiny", patch_size=32, weights=str(best))
    given = torch.load(best, weights_only=True)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in given.items())


def test_a_folder_of_timm_names_its_network_and_its_settings(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, init_values=1e-5)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 0,
        "model_args": {"img_size": 64, "init_values": 1e-5},
        "pretrained_cfg": {"mean": [0.7, 0.6, 0.7], "std": [0.2, 0.2, 0.2], "license": "cc-by-nc-nd-4.0"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, architecture = build_model("resnet50", patch_size=32, weights=str(tmp_path))
    assert torch.equal(model.state_dict()["patch_embed.proj.weight"], source.patch_embed.proj.weight)
    assert (architecture.name, architecture.input_size) == ("vit_tiny_patch16_224", 64)
    assert (architecture.mean, architecture.license) == ((0.7, 0.6, 0.7), "cc-by-nc-nd-4.0")


def test_an_encoder_from_a_folder_is_trained_frozen_and_loaded_without_the_folder(tmp_path):
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    source = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32)
    save_file(source.state_dict(), encoder / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "model_args": {"img_size": 32, "num_classes": 0}}
    (encoder / "config.json").write_text(json.dumps(config))
    options = quick(weights=str(encoder), freeze_backbone=True, max_epochs=1)
    result = run(cohort(), options, tmp_path / "run")
    (encoder / "model.safetensors").unlink()
    loaded = load_model(result.best_path).model.state_dict()
    assert torch.equal(loaded["cls_token"], source.cls_token)


def test_local_weights_that_do_not_fit_or_are_missing_are_refused(tmp_path):
    torch.save(models.resnet34(weights=None).state_dict(), tmp_path / "34.pth")
    (tmp_path / "empty").mkdir()
    for name in ("34.pth", "nowhere.pth", "empty"):
        with pytest.raises(ModelError) as caught:
            build_model("resnet50", patch_size=32, weights=str(tmp_path / name))
        assert caught.value.path == str(tmp_path / name)
    check_weights("resnet50", str(tmp_path / "34.pth"))  # is there; whether it fits, only reading tells
    for name in ("nowhere.pth", "empty"):
        with pytest.raises(ModelError):
            check_weights("resnet50", str(tmp_path / name))


def test_imagenet_weights_without_internet_give_one_line_with_the_remedies(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(ModelError, match="weights=none") as caught:
        build_model("resnet18", patch_size=32, weights="imagenet")
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="weights=none"):
        check_weights("resnet18", "imagenet")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: "model.safetensors")
    check_weights("resnet18", "imagenet")


def test_a_network_with_random_weights_cannot_be_frozen():
    with pytest.raises(ValueError, match="freeze_backbone"):
        quick(freeze_backbone=True)
