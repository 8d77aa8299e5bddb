"""Networks that do what few others do: `benchmarks/coverage.py` covers them, as it does the rest."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NETWORKS = {
    "timm/bat_resnext26ts": "attention by products of channels",
    "timm/botnet26t_256": "relative positions by a product",
    "timm/cait_xxs24_224": "layer scales, talking heads",
    "timm/coat_tiny": "tied weights",
    "timm/coatnet_pico_rw_224": "a table of relative positions",
    "timm/convit_tiny": "sigmoid of a parameter",
    "timm/convnextv2_atto": "global response normalisation",
    "timm/davit_tiny": "windows",
    "timm/eca_nfnet_l0": "standardised weights",
    "timm/efficientvim_m1": "softmax of a parameter",
    "timm/eva02_tiny_patch14_224": "a bias put together",
    "timm/hieradet_small": "position embeddings that are resized and tiled",
    "timm/lambda_resnet26t": "layers of products",
    "timm/levit_128s": "BatchNorm over rows of many examples",
    "timm/lowformer_b0": "transposed convolutions",
    "timm/maxvit_pico_rw_256": "windows and grids",
    "timm/mobilevit_xxs": "patches as rows",
    "timm/mvitv2_tiny": "heads as rows",
    "timm/resnest14d": "convolutions of split attention",
    "timm/sequencer2d_s": "LSTM",
    "timm/swinv2_tiny_window8_256": "a network for the position bias",
    "torchvision/googlenet": "several outputs",
    "torchvision/swin_t": "windows that are moved",
    "torchvision/vit_b_32": "multi-head attention",
    "transformers/BitForImageClassification": "standardised weights",
    "transformers/ImageGPTForImageClassification": "tokens, position embeddings of one row",
    "transformers/PerceiverForImageClassificationConvProcessing": "latents",
    "transformers/ShieldGemma2ForImageClassification": "text beside pictures, tied embeddings",
    "transformers/Siglip2ForImageClassification": "positions resized for each example",
    "transformers/SwiftFormerForImageClassification": "a product with a parameter",
}


@pytest.fixture
def tried(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    pytest.importorskip("transformers")
    from coverage_parts.networks import tried

    return tried


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_exact(tried, name):
    found = tried(name)
    assert found["status"] == "covered", (NETWORKS[name], found)
    assert max(each["error"] for each in (found["running"], found.get("of_batch", found["running"]))) <= 1e-6
