"""Networks of torchvision, timm and Hugging Face with random weights, each with inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

N_CLASSES = 10

#: One of each family of classifiers, with the side of its images.
TORCHVISION = {
    "alexnet": 64, "convnext_tiny": 64, "densenet121": 64, "efficientnet_b0": 64, "efficientnet_v2_s": 64,
    "googlenet": 64, "inception_v3": 96, "maxvit_t": 224, "mnasnet1_0": 64, "mobilenet_v2": 64,
    "mobilenet_v3_small": 64, "regnet_y_400mf": 64, "resnet18": 64, "resnext50_32x4d": 64,
    "shufflenet_v2_x1_0": 64, "squeezenet1_1": 64, "swin_t": 64, "swin_v2_t": 64, "vgg11": 64, "vit_b_32": 128,
    "wide_resnet50_2": 64,
}  # fmt: skip

#: Each takes images of its own size.
TIMM = [
    "beit_base_patch16_224", "cait_xxs24_224", "coat_lite_tiny", "convmixer_768_32", "convnextv2_atto",
    "crossvit_tiny_240", "cspresnet50", "deit_tiny_patch16_224", "dla34", "edgenext_xx_small", "efficientformer_l1",
    "efficientnet_lite0", "eva02_tiny_patch14_224", "fastvit_t8", "focalnet_tiny_srf", "ghostnet_100",
    "gmlp_ti16_224", "hrnet_w18_small", "inception_next_tiny", "levit_128s", "mixer_s16_224", "mobilevit_xxs",
    "mvitv2_tiny", "nfnet_l0", "poolformer_s12", "pvt_v2_b0", "repvgg_a0", "res2net50d", "seresnet18",
    "swin_tiny_patch4_window7_224", "tiny_vit_5m_224", "vovnet39a", "xcit_nano_12_p16_224",
]  # fmt: skip
#: Images where the network's own are large for a benchmark.
SMALLER = {"beit_base_patch16_224": 64, "convmixer_768_32": 96, "cspresnet50": 96, "focalnet_tiny_srf": 96,
           "inception_next_tiny": 96, "nfnet_l0": 96, "res2net50d": 96, "vovnet39a": 96}  # fmt: skip
WITH_IMAGE_SIZE = {"beit_base_patch16_224"}

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
DECODER = SIZES | {"num_key_value_heads": 1}
AUDIO = SIZES | {
    "conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2, "classifier_proj_size": 32,
}  # fmt: skip
ENCODERS = {
    "Albert": SIZES | {"embedding_size": 16}, "Bert": SIZES, "Camembert": SIZES,
    "Deberta": SIZES, "DebertaV2": SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "DistilBert": {"dim": 32, "n_layers": 4, "n_heads": 2, "hidden_dim": 64}, "Electra": SIZES,
    "Flaubert": {"emb_dim": 32, "n_layers": 4, "n_heads": 2}, "FNet": SIZES, "MPNet": SIZES, "ModernBert": SIZES,
    "Roberta": SIZES, "RoFormer": SIZES | {"embedding_size": 32}, "SqueezeBert": SIZES | {"embedding_size": 32},
    "XLM": {"emb_dim": 32, "n_layers": 4, "n_heads": 2}, "XLMRoberta": SIZES,
}  # fmt: skip
DECODERS = {
    "Bloom": {"hidden_size": 32, "n_layer": 4, "n_head": 2}, "Falcon": SIZES,
    "GPT2": {"n_embd": 32, "n_layer": 4, "n_head": 2}, "GPTNeoX": SIZES, "Gemma": DECODER | {"head_dim": 16},
    "Llama": DECODER, "Mistral": DECODER, "OPT": SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32}, "Phi": DECODER,
    "Qwen2": DECODER, "Qwen3": DECODER | {"head_dim": 16}, "StableLm": DECODER,
}  # fmt: skip
SEQ2SEQ = {
    "Bart": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "eos_token_id": 2},
    "T5": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "eos_token_id": 2,
           "decoder_start_token_id": 0},
}  # fmt: skip
IMAGES = {
    "Beit": SIZES, "ConvNextV2": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1], "patch_size": 2},
    "DeiT": SIZES, "Dinov2": SIZES,
    "MobileNetV2": {"depth_multiplier": 0.35}, "RegNet": {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 2, 1],
                                                          "groups_width": 8, "embedding_size": 8},
    "ResNet": {"hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 2, 1], "embedding_size": 8},
    "Swin": {"embed_dim": 8, "depths": [1, 2, 1], "num_heads": [1, 2, 2], "window_size": 2, "patch_size": 2},
    "ViT": SIZES, "ViTMSN": SIZES,
}  # fmt: skip
SOUNDS = ["Data2VecAudio", "Hubert", "SEW", "UniSpeech", "Wav2Vec2", "WavLM"]
SPECTROGRAMS = {
    "ASTForAudioClassification": ("input_values", (64, 16), SIZES | {"max_length": 64, "num_mel_bins": 16}),
    "WhisperForAudioClassification": ("input_features", (16, 64), {
        "d_model": 32, "encoder_layers": 4, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "num_mel_bins": 16,
        "max_source_positions": 32, "decoder_layers": 1, "vocab_size": 100, "pad_token_id": 0}),
}  # fmt: skip


def torchvision_network(name: str, n_samples: int) -> tuple[nn.Module, torch.Tensor]:
    """A network and images."""
    from torchvision import models

    side = TORCHVISION[name]
    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name == "vit_b_32":
        options["image_size"] = side
    model = models.get_model(name, weights=None, num_classes=N_CLASSES, **options)
    return model, torch.randn(n_samples, 3, side, side)


def timm_network(name: str, n_samples: int) -> tuple[nn.Module, torch.Tensor]:
    """A network and images."""
    import timm

    options = {"img_size": SMALLER[name]} if name in WITH_IMAGE_SIZE else {}
    model = timm.create_model(name, pretrained=False, num_classes=N_CLASSES, **options)
    side = SMALLER.get(name, model.default_cfg["input_size"][-1])
    return model, torch.randn(n_samples, 3, side, side)


def _hugging_face(name: str, task: str, settings: dict[str, Any]) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")(**{"num_labels": N_CLASSES, "pad_token_id": 0} | settings)
    model: nn.Module = getattr(transformers, f"{name}For{task}")(config)
    return model


def text_network(name: str, n_samples: int) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A network and texts of 4 to 12 tokens with their mask, which ends with token 2 as sequence models want it."""
    settings = (ENCODERS | DECODERS | SEQ2SEQ)[name]
    model = _hugging_face(name, "SequenceClassification", {"vocab_size": 100} | settings)
    lengths = torch.randint(4, 13, (n_samples, 1))
    tokens = torch.randint(5, 100, (n_samples, 12)).scatter(1, lengths - 1, 2)
    mask = (torch.arange(12) < lengths).long()
    if name == "FNet":  # takes no mask
        return model, {"input_ids": tokens * mask}
    return model, {"input_ids": tokens * mask, "attention_mask": mask}


def image_network(name: str, n_samples: int) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A network and images."""
    model = _hugging_face(name, "ImageClassification", {"image_size": 32, "patch_size": 8} | IMAGES[name])
    return model, {"pixel_values": torch.randn(n_samples, 3, 32, 32)}


def sound_network(name: str, n_samples: int) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A network and sounds of 800 to 1,600 samples, with their mask."""
    model = _hugging_face(name, "SequenceClassification", AUDIO | ({"squeeze_factor": 1} if name == "SEW" else {}))
    mask = (torch.arange(1600) < torch.randint(800, 1601, (n_samples, 1))).long()
    return model, {"input_values": torch.randn(n_samples, 1600) * mask, "attention_mask": mask}


def spectrogram_network(name: str, n_samples: int) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A network and spectrograms."""
    import transformers

    argument, shape, settings = SPECTROGRAMS[name]
    config = getattr(transformers, name.split("For")[0] + "Config")(**{"num_labels": N_CLASSES} | settings)
    return getattr(transformers, name)(config), {argument: torch.randn(n_samples, *shape)}
