"""The vision transformer, written out.

A picture becomes tokens as a text does. It is cut into square patches, a linear map makes a vector of each,
and from there on it is the encoder of any other sequence (Dosovitskiy et al. 2021, "An Image is Worth 16x16
Words").

Shapes: B pictures, C channels, S pixels a side, T patches, d features of a token.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from recsys_lib.attention import BlockStack, Trace

__all__ = ["VisionTransformer", "from_vit_state", "pixels"]


def pixels(images: Tensor) -> Tensor:
    """What a vision transformer reads: uint8 from 0 to 255 becomes float32 from -1 to 1, of the same shape.

    Raises:
        ValueError: other than (B, 3, S, S) uint8.
    """
    if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[2] != images.shape[3]:
        kind = f"{tuple(images.shape)} of {str(images.dtype).removeprefix('torch.')}"
        raise ValueError(f"images must be square, (B, C, S, S) uint8; got {kind}")
    return images.float() / 127.5 - 1


class VisionTransformer(nn.Module):
    """Patches in, one vector a picture out.

        x_0 = class token,   x_t = E patch_t,   all plus a learned position;   then blocks, then LayerNorm

    Dosovitskiy et al. 2021, equations 1 to 4. The blocks normalize first ("pre"), as in the paper.

    Args:
        image_size: S, pixels a side; a multiple of ``patch_size``.
        patch_size: Pixels a side of a patch.
        dim: d, features of a token.
        n_layers: Number of blocks.
        n_heads: Attention heads in each block.
        hidden: Features inside the feed-forward layers; four times ``dim`` when not given.
        channels: C, three for color.
        pooling: "cls", the class token after the last block, or "mean" of the patches.
        dropout: Share dropped in training, see ``EncoderBlock``.
        eps: What LayerNorm adds to the variance.
        fused: Use torch's fused attention kernel.

    Raises:
        ValueError: The patches do not fill the picture, or another pooling.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        dim: int,
        n_layers: int,
        n_heads: int,
        *,
        hidden: int | None = None,
        channels: int = 3,
        pooling: str = "cls",
        dropout: float = 0.0,
        eps: float = 1e-5,
        fused: bool = True,
    ) -> None:
        super().__init__()
        if patch_size < 1 or image_size % patch_size:
            raise ValueError(f"patches of {patch_size} pixels a side do not fill a picture of {image_size}")
        if pooling not in ("cls", "mean"):
            raise ValueError(f"pooling={pooling!r} is neither 'cls' nor 'mean'")
        self.image_size, self.pooling = image_size, pooling
        # A convolution whose steps are as long as its kernel: one linear map, of each patch alone.
        self.patches = nn.Conv2d(channels, dim, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.empty(dim))
        self.positions = nn.Parameter(torch.empty(1 + (image_size // patch_size) ** 2, dim))  # (1 + T, d)
        self.blocks = BlockStack(
            n_layers, dim, n_heads, hidden, norm="pre", dropout=dropout, eps=eps, fused=fused
        )
        self.norm, self.dropout = nn.LayerNorm(dim, eps), nn.Dropout(dropout)
        for learned_row in (self.class_token, self.positions):
            nn.init.normal_(learned_row, std=0.02)

    def embed(self, images: Tensor) -> Tensor:
        """What goes into the first block, of images (B, C, S, S) float: (B, 1 + T, d)."""
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(f"images must be (B, C, {self.image_size}, {self.image_size})")
        x = self.patches(images).flatten(2).mT  # (B, T, d), row by row of the picture
        first = self.class_token.expand(len(x), 1, -1)  # (B, 1, d)
        return self.dropout(torch.cat([first, x], dim=1) + self.positions)  # (B, 1 + T, d)

    def tokens(self, images: Tensor) -> Tensor:
        """All tokens after the last block, the class token first: (B, 1 + T, d)."""
        return self.norm(self.blocks(self.embed(images)))  # (B, 1 + T, d)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) float, as ``pixels`` makes them, to one vector each: (B, d)."""
        x = self.tokens(images)  # (B, 1 + T, d)
        return x[:, 0] if self.pooling == "cls" else x[:, 1:].mean(dim=1)  # (B, d)

    def trace(self, images: Tensor) -> Trace:
        """What each block gave, and which patch looked at which, see ``attention.Trace``."""
        return self.blocks.trace(self.embed(images))


_VIT_BLOCK = {
    "attention_norm": "layernorm_before",
    "attention.query": "attention.attention.query",
    "attention.key": "attention.attention.key",
    "attention.value": "attention.attention.value",
    "attention.output": "attention.output.dense",
    "feed_forward_norm": "layernorm_after",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
}


def from_vit_state(
    state: Mapping[str, Tensor], config: Mapping[str, Any], *, fused: bool = True
) -> VisionTransformer:
    """Put the weights of a published ViT into ``VisionTransformer``.

    Args:
        state: Name -> weight, as ``safetensors.torch.load_file`` reads them from the published file; copied.
            Pooler and classifier are left out.
        config: The model's ``config.json``.
        fused: Use torch's fused attention kernel.

    Returns:
        The model in evaluation mode, on the weights' device and in their type.

    Raises:
        ValueError: It is no ViT, has a part that is not supported, or lacks a weight.
    """
    if config.get("model_type") != "vit":
        raise ValueError(f"model_type {config.get('model_type')!r} is not 'vit'")
    if config["hidden_act"] != "gelu" or not config.get("qkv_bias", True):
        raise ValueError("only ViTs with hidden_act 'gelu' and biases in attention are supported")
    with torch.device("meta"):  # the shapes alone: no random weights are drawn to be thrown away
        model = VisionTransformer(
            config["image_size"],
            config["patch_size"],
            config["hidden_size"],
            config["num_hidden_layers"],
            config["num_attention_heads"],
            hidden=config["intermediate_size"],
            channels=config["num_channels"],
            dropout=config.get("hidden_dropout_prob", 0.0),
            eps=config["layer_norm_eps"],
            fused=fused,
        )
    names = {"patches": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
    for i in range(config["num_hidden_layers"]):
        names |= {f"blocks.{i}.{ours}": f"encoder.layer.{i}.{theirs}" for ours, theirs in _VIT_BLOCK.items()}
    single = {"class_token": "embeddings.cls_token", "positions": "embeddings.position_embeddings"}
    given = {name.removeprefix("vit."): weight for name, weight in state.items()}
    weights = {}
    for name, expected in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        source = single.get(name) or f"{names[module]}.{kind}"
        if source not in given:
            raise ValueError(f"the weights lack {source!r}")
        weight = given.pop(source)
        weight = weight.reshape(expected.shape) if name in single else weight
        if weight.shape != expected.shape:
            raise ValueError(f"{source!r} has the shape {tuple(weight.shape)}, not {tuple(expected.shape)}")
        weights[name] = weight.clone()
    if unknown := [name for name in given if name.startswith(("embeddings.", "encoder."))]:
        raise ValueError(f"the model has no place for {len(unknown)} weights, such as {unknown[0]!r}")
    model.load_state_dict(weights, assign=True)
    return model.eval()
