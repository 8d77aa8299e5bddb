"""transformers: every class that tells classes of pictures, in a small configuration."""

from collections.abc import Callable
from functools import partial

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as MAPPING

from .check import BATCH, CLASSES, Network, first_that_takes, pictures

PIXELS = 64
_TRANSFORMER = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
_VISION = _TRANSFORMER | {"image_size": PIXELS, "patch_size": 16}
_TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
_DUAL = {"vision_config": _VISION, "text_config": _TEXT | {"projection_size": 16}}
_SWIN = {"image_size": PIXELS, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_STAGES = {"hidden_sizes": [32, 48, 64, 96], "depths": [2, 2, 2, 2]}
_PYRAMID = {"image_size": PIXELS, "hidden_sizes": [16, 32, 64, 96], "num_attention_heads": [1, 2, 4, 8]}
_LATENTS = {"num_latents": 8, "d_latents": 64, "num_self_attends_per_block": 2, "num_cross_attention_heads": 1}
OPTIONS = {  # by the configuration's class; others are vision transformers
    "BeitConfig": _VISION | {"use_relative_position_bias": True},
    "BitConfig": {"depths": [2, 2, 2, 2]},
    "CLIPConfig": _DUAL,
    "ConvNextConfig": _STAGES,
    "ConvNextV2Config": _STAGES,
    "CvtConfig": {"embed_dim": [16, 24, 48], "depth": [1, 2, 3]},
    "Data2VecVisionConfig": _VISION | {"use_shared_relative_position_bias": True},
    "DinatConfig": {},
    "DonutSwinConfig": _SWIN,
    "EfficientNetConfig": {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
    "FocalNetConfig": {"embed_dim": 24, "depths": [2, 2], "focal_levels": [2, 2], "focal_windows": [3, 3]}
    | {"image_size": PIXELS, "use_layerscale": True},
    "HGNetV2Config": {},
    "HieraConfig": {"embed_dim": 24, "depths": [1, 1, 2, 1], "image_size": [128, 128]},
    "ImageGPTConfig": {"n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 4},
    "LevitConfig": {"image_size": PIXELS},
    "MetaClip2Config": _DUAL,
    "MobileNetV1Config": {},
    "MobileNetV2Config": {},
    "MobileViTConfig": {"image_size": PIXELS},
    "MobileViTV2Config": {"image_size": PIXELS},
    "PPLCNetConfig": {},
    "PerceiverConfig": _LATENTS | {"image_size": PIXELS},
    "PoolFormerConfig": _STAGES,
    "PvtConfig": _PYRAMID,
    "PvtV2Config": _PYRAMID,
    "RegNetConfig": {"hidden_sizes": [64, 64, 128, 128], "depths": [1, 1, 2, 1]},
    "ResNetConfig": {"hidden_sizes": [64, 64, 128, 128], "depths": [2, 2, 2, 2]},
    "SegformerConfig": {},
    "ShieldGemma2Config": {
        "text_config": _TEXT | {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 11000},
        "vision_config": _VISION,
        "mm_tokens_per_image": 4,
        "boi_token_index": 61,
        "eoi_token_index": 62,
        "image_token_index": 63,
    },
    "Siglip2Config": {"vision_config": _TRANSFORMER | {"num_patches": 16, "patch_size": 8}, "text_config": _TEXT},
    "SiglipConfig": _DUAL,
    "SwiftFormerConfig": {"depths": [2, 2, 2, 2]},
    "SwinConfig": _SWIN | {"use_absolute_embeddings": True},
    "Swinv2Config": _SWIN,
    "TextNetConfig": {},
    "TimmWrapperConfig": {"architecture": "resnet18"},
}


def _classes() -> dict[str, tuple[type[PretrainedConfig], type]]:
    """Return the classes of networks with those of their configurations, by name."""
    found = {}
    for configuration, networks in MAPPING.items():
        for network in networks if isinstance(networks, tuple) else (networks,):
            found[network.__name__] = configuration, network
    return found


def names() -> list[str]:
    return sorted(_classes())


def make(name: str) -> Network:
    """Make a small network of a class.

    Raises:
        ValueError: making or calling it raises an error; with that.
    """
    return first_that_takes([partial(_made, *_classes()[name])])


def _made(configuration: type[PretrainedConfig], network: type) -> Network:
    options = OPTIONS.get(configuration.__name__, _VISION)
    return Network(network(configuration(num_labels=CLASSES, **options)), INPUTS.get(network.__name__, _pictures)())


def _pictures() -> dict[str, Tensor]:
    return {"pixel_values": pictures(PIXELS)}


def _patches() -> dict[str, Tensor]:
    return {
        "pixel_values": torch.randn(BATCH, 16, 3 * 8 * 8),
        "pixel_attention_mask": torch.ones(BATCH, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4], [2, 8], [8, 2]]),
    }


def _picture_and_text() -> dict[str, Tensor]:
    tokens = torch.tensor([2, 61, 63, 63, 63, 63, 62, 5, 6, 7]).repeat(BATCH, 1)
    return {
        "input_ids": tokens,
        "pixel_values": pictures(PIXELS),
        "attention_mask": torch.ones_like(tokens),
        "token_type_ids": (tokens == 63).long(),
    }


INPUTS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "HieraForImageClassification": lambda: {"pixel_values": pictures(128)},
    "ImageGPTForImageClassification": lambda: {"input_ids": torch.randint(512, (BATCH, 64))},
    "PerceiverForImageClassificationConvProcessing": lambda: {"inputs": pictures(224)},
    "PerceiverForImageClassificationFourier": lambda: {"inputs": pictures(PIXELS)},
    "PerceiverForImageClassificationLearned": lambda: {"inputs": pictures(PIXELS)},
    "ShieldGemma2ForImageClassification": _picture_and_text,
    "Siglip2ForImageClassification": _patches,
}

transformers.logging.set_verbosity_error()
