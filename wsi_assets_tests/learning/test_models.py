import io
import pickle
import urllib.error

import pytest
import torch
from wsi_assets.learning.backbones import build_model

from wsi_assets.errors import ModelError
from wsi_assets.learning import load_model, train
from wsi_assets_tests.learning.fakes import cohort, quick


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    return train(cohort(), quick(max_epochs=1), tmp_path_factory.mktemp("model")).best_path


def test_best_loads_as_weights_only_and_says_what_it_is(best):
    plain = torch.load(best, weights_only=True)
    assert plain["model_name"] == "tiny"
    assert plain["classes"] == ["normal", "tumor"]
    assert (plain["patch_size"], plain["level"], plain["mpp"]) == (32, 4, 0.25)
    assert plain["normalisation"]["mean"] == [0.485, 0.456, 0.406]
    assert plain["config"] == quick(max_epochs=1).model_dump()
    assert plain["data_digest"] == cohort().info["digest"]
    assert plain["epoch"] == 1
    assert {row["side"] for row in plain["split"]["rows"]} == {"train", "val"}


def test_the_classifier_turns_pixels_into_probabilities(best):
    classifier = load_model(best).classifier()
    pixels = torch.from_numpy(cohort().patches[:3])
    with torch.inference_mode():
        torch.testing.assert_close(classifier(pixels), classifier(pixels.float()))
        torch.testing.assert_close(classifier(pixels).sum(dim=1), torch.ones(3))


class Hostile:
    def __reduce__(self):
        return print, ("code has run",)


def hostile():
    buffer = io.BytesIO()
    torch.save({"format": 1, "state_dict": Hostile()}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 torn",
        pickle.dumps(Hostile(), protocol=2),
        hostile(),
        pickle.dumps({"format": 1}, protocol=2),
        b"\x80\x02].",
    ],
    ids=["empty", "torn", "hostile pickle", "hostile file", "another dict", "a list"],
)
def test_what_is_no_model_is_refused_in_one_line_and_never_run(tmp_path, content, capsys):
    path = tmp_path / "best.pt"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert "code has run" not in capsys.readouterr().out


def test_a_truncated_model_is_refused(best, tmp_path):
    whole = best.read_bytes()
    for share in (0.3, 0.99):
        (tmp_path / "best.pt").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ModelError, match="damaged"):
            load_model(tmp_path / "best.pt")


def test_weights_of_another_network_are_refused(best, tmp_path):
    plain = torch.load(best, weights_only=True)
    torch.save({**plain, "model_name": "resnet18"}, tmp_path / "best.pt")
    with pytest.raises(ModelError, match="not a model that this project wrote"):
        load_model(tmp_path / "best.pt")


@pytest.mark.parametrize("name", ["resnet19", "inception_v3", "fcn_resnet50", ""])
def test_unknown_networks_are_refused(name):
    with pytest.raises(ModelError, match="resnet18"):
        build_model(name, patch_size=64)


def test_a_network_of_fixed_input_size_refuses_other_patches():
    with pytest.raises(ModelError, match="does not take patches of 32 pixels"):
        build_model("vit_b_16", patch_size=32)


@pytest.mark.parametrize("size", [0, -1, 5000, 2**31, 2**63, 10**400, "64", None])
def test_a_patch_size_that_cannot_be_is_refused_before_any_memory_is_asked_for(size):
    with pytest.raises(ModelError, match="are not possible") as caught:
        build_model("resnet18", patch_size=size)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_networks_of_torchvision_have_two_outputs(name):
    assert build_model(name, patch_size=64)(torch.zeros(2, 3, 64, 64)).shape == (2, 2)


@pytest.mark.parametrize(
    "wrapped", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}]
)
def test_local_weights_of_a_thousand_classes_fill_all_but_the_classifier(tmp_path, wrapped):
    from torchvision import models

    torch.manual_seed(1)
    pretrained = models.resnet18(weights=None, num_classes=1000).state_dict()
    torch.save(wrapped({f"module.{key}": value for key, value in pretrained.items()}), tmp_path / "w.pth")
    torch.manual_seed(2)
    own = build_model("resnet18", patch_size=32, weights=str(tmp_path / "w.pth")).state_dict()
    assert all(torch.equal(own[key], value) for key, value in pretrained.items() if not key.startswith("fc."))
    assert own["fc.weight"].shape == (2, 512)


def test_local_weights_of_another_network_are_refused(tmp_path):
    from torchvision import models

    torch.save(models.resnet34(weights=None).state_dict(), tmp_path / "34.pth")
    with pytest.raises(ModelError, match=r"34\.pth: does not fit the network"):
        build_model("resnet50", patch_size=32, weights=str(tmp_path / "34.pth"))
    with pytest.raises(ModelError, match="does not exist"):
        build_model("resnet50", patch_size=32, weights=str(tmp_path / "nowhere.pth"))


def test_without_network_imagenet_weights_are_one_clear_line(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(ModelError, match="weights=none") as caught:
        build_model("resnet18", patch_size=32, weights="imagenet")
    assert "\n" not in str(caught.value)
