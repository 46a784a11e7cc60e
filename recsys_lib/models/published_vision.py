"""Vectors of pictures from a published CLIP or ViT, by its name on the hub or from a folder."""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from recsys_lib.devices import resolve_device
from recsys_lib.models.vision import pixels
from recsys_lib.progress import progress_bar
from recsys_lib.text.pretrained import model_folder, quiet

__all__ = ["encode_with_transformers"]


@torch.no_grad()
def encode_with_transformers(
    name_or_path: str | os.PathLike[str],
    images: Tensor,
    *,
    batch_size: int = 32,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> Tensor:
    """Vectors of pictures from a published CLIP or ViT, such as "openai/clip-vit-base-patch32".

    Of a CLIP they are the projected ones, which stand beside those of its texts; of a ViT its class tokens.
    Pictures are made as large as the model wants them, and given the mean and deviation that the model's
    ``preprocessor_config.json`` states. Only safetensors are read, and no code of the model is run.

    Args:
        name_or_path: A folder that holds the model, or its name on the Hugging Face hub.
        images: (N, 3, S, S) uint8.
        batch_size: Pictures at a time.
        device: "auto", "cpu", "cuda", "mps" or a ``torch.device``.
        progress: Show a bar.

    Returns:
        (N, d) float32 of length one, on the device.

    Raises:
        ValueError: The model is neither, has no safetensors file or lacks weights.
        FileNotFoundError: The folder holds no model, or the hub does not know the name.
        ConnectionError: The hub cannot be reached, and the model was not fetched before.
    """
    pixels(images[:1])
    folder, place = model_folder(name_or_path), resolve_device(device)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model, size = _published(folder, str(name_or_path), config)
    model = model.to(place).eval()
    mean, std = _statistics(folder, str(name_or_path), place)
    vectors = []
    for part in progress_bar(images.split(batch_size), "encoding images", enabled=progress):
        x = part.to(place).float() / 255  # (b, 3, S, S)
        x = functional.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        found = model(pixel_values=(x - mean) / std)
        vectors.append(
            found.image_embeds if hasattr(found, "image_embeds") else found.last_hidden_state[:, 0]
        )
    if not vectors:
        raise ValueError("there are no images to encode")
    return functional.normalize(torch.cat(vectors).float(), dim=1)  # (N, d)


def _published(folder: Path, name: str, config: Mapping[str, Any]) -> tuple[Any, int]:
    """The model, whole and without a random weight, and the side of the pictures that it reads."""
    import transformers

    kinds: dict[str, Any] = {
        "clip": transformers.CLIPVisionModelWithProjection,
        "clip_vision_model": transformers.CLIPVisionModelWithProjection,
        "vit": transformers.ViTModel,
    }
    kind = kinds.get(str(config.get("model_type")))
    if kind is None:
        raise ValueError(f"{name} is of the type {config.get('model_type')!r}, neither a CLIP nor a ViT")
    settings = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if config["model_type"] == "clip":  # the whole model states the projection's size, the half reads its own
        settings.vision_config.projection_dim = settings.projection_dim
        settings = settings.vision_config
    with quiet(transformers), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model, report = kind.from_pretrained(
                folder,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                config=settings,
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"the model {name} in {folder} cannot be loaded: {error}") from error
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing or report["mismatched_keys"]:
        what = missing or sorted(str(key) for key in report["mismatched_keys"])
        raise ValueError(f"{name} lacks weights of its own model ({what[0]} and {len(what) - 1} more)")
    return model, int(model.config.image_size)


def _statistics(folder: Path, name: str, place: torch.device) -> tuple[Tensor, Tensor]:
    """The mean and deviation of each color that the model was trained with: (1, 3, 1, 1) twice."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        raise ValueError(
            f"{name} has no preprocessor_config.json, which states the mean and deviation that its pictures "
            "must have; fetch it into the model's folder"
        )
    stated = json.loads(file.read_text(encoding="utf-8"))
    mean, std = (torch.tensor(stated[key], device=place) for key in ("image_mean", "image_std"))
    return mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)
