"""The vision transformer against transformers' own; training by contrast; published models."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from recsys_lib.devices import isolated_rng
from recsys_lib.models.image_text import (
    ImageTextTower,
    image_text_loss,
    moved_and_mirrored,
    name_recall,
)
from recsys_lib.models.published_vision import encode_with_transformers
from recsys_lib.models.vision import VisionTransformer, from_vit_state, pixels


def drawn(n: int, size: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)


def small(**options: object) -> VisionTransformer:
    with isolated_rng(0):
        return VisionTransformer(16, 4, 12, 2, 3, **options)


# ---------------------------------------------------------------------- the transformer


@pytest.fixture(scope="module")
def published() -> transformers.ViTModel:
    config = transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        image_size=16,
        patch_size=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    with isolated_rng(1):
        model = transformers.ViTModel(config, add_pooling_layer=False)
        for parameter in model.parameters():  # also what begins at zero or one
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def as_saved(model: transformers.ViTModel, folder: Path) -> dict[str, Tensor]:
    """The weights by the names that they have in a published file; in memory they have others."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def state(published: transformers.ViTModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return as_saved(published, tmp_path_factory.mktemp("vit"))


@pytest.mark.parametrize("fused", [True, False])
def test_the_same_numbers_as_transformers(
    published: transformers.ViTModel, state: dict[str, Tensor], fused: bool
) -> None:
    ours = from_vit_state(state, published.config.to_dict(), fused=fused)
    images = pixels(drawn(3))
    theirs = published(pixel_values=images).last_hidden_state
    torch.testing.assert_close(ours.tokens(images), theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours(images), theirs[:, 0], atol=1e-5, rtol=1e-5)


def test_the_same_gradients_as_transformers(
    published: transformers.ViTModel, state: dict[str, Tensor], tmp_path: Path
) -> None:
    config = published.config.to_dict()
    ours, theirs = from_vit_state(state, config), copy.deepcopy(published)
    weights = torch.randn(3, 24, generator=torch.Generator().manual_seed(2))
    mine, other = (pixels(drawn(3)).requires_grad_() for _ in range(2))
    (ours(mine) * weights).sum().backward()
    (theirs(pixel_values=other).last_hidden_state[:, 0] * weights).sum().backward()
    torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-4)
    # Their gradients in the place of their weights come over by the same names.
    for parameter in theirs.parameters():
        parameter.data = parameter.grad
    expected = from_vit_state(as_saved(theirs, tmp_path), config).state_dict()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_a_patch_is_a_linear_map_of_its_pixels() -> None:
    model, images = small(), pixels(drawn(2))
    cut = functional.unfold(images, 4, stride=4).mT  # (B, T, 3 * 4 * 4)
    weight = model.patches.weight.flatten(1)  # (d, 48)
    expected = cut @ weight.mT + model.patches.bias + model.positions[1:]
    torch.testing.assert_close(model.embed(images)[:, 1:], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.embed(images)[1, 0], model.class_token + model.positions[0])


def test_without_positions_the_order_of_patches_says_nothing() -> None:
    model, image = small(pooling="mean").eval(), pixels(drawn(1))
    turned = torch.cat([image[..., 8:], image[..., :8]], dim=3)  # whole patches change places
    assert not torch.allclose(model(image), model(turned), atol=1e-4)
    with torch.no_grad():
        model.positions.zero_()
    torch.testing.assert_close(model(image), model(turned), atol=1e-5, rtol=1e-5)


def test_who_looks_at_whom() -> None:
    trace = small().trace(pixels(drawn(2)))
    assert trace.weights.shape == (2, 2, 3, 17, 17)
    torch.testing.assert_close(trace.weights.sum(-1), torch.ones(2, 2, 3, 17))


def test_what_a_transformer_refuses() -> None:
    with pytest.raises(ValueError, match="patches of 5 pixels a side do not fill a picture of 16"):
        VisionTransformer(16, 5, 8, 1, 1)
    with pytest.raises(ValueError, match="neither 'cls' nor 'mean'"):
        small(pooling="max")
    with pytest.raises(ValueError, match=r"\(B, C, 16, 16\)"):
        small()(pixels(drawn(1, 8)))
    with pytest.raises(ValueError, match="square"):
        pixels(drawn(1)[..., :8])
    with pytest.raises(ValueError, match="uint8"):
        pixels(drawn(1).float())


def test_what_weights_are_refused(published: transformers.ViTModel, state: dict[str, Tensor]) -> None:
    config = published.config.to_dict()
    with pytest.raises(ValueError, match="is not 'vit'"):
        from_vit_state(state, {"model_type": "bert"})
    with pytest.raises(ValueError, match=r"the weights lack 'layernorm\.bias'"):
        from_vit_state({k: v for k, v in state.items() if k != "layernorm.bias"}, config)
    with pytest.raises(ValueError, match="no place for 1 weights"):
        from_vit_state({**state, "encoder.layer.9.x": torch.zeros(1)}, config)
    with pytest.raises(ValueError, match="hidden_act 'gelu'"):
        from_vit_state(state, {**config, "hidden_act": "relu"})
    with pytest.raises(ValueError, match="has the shape"):
        from_vit_state({**state, "layernorm.bias": torch.zeros(3)}, config)
    assert from_vit_state({**state, "pooler.dense.bias": torch.zeros(24)}, config)(
        pixels(drawn(1))
    ).shape == (1, 24)


# ---------------------------------------------------------------------- the loss


def test_the_loss_by_hand() -> None:
    images = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    texts = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    c = 1 / math.sqrt(2)  # cosines [[1, c], [0, c]]
    half = 0.5  # the temperature
    rows = [math.log1p(math.exp((c - 1) / half)), math.log1p(math.exp(-c / half))]
    columns = [math.log1p(math.exp(-1 / half)), math.log(2)]
    expected = (sum(rows) / 2 + sum(columns) / 2) / 2
    assert float(image_text_loss(images, texts, half)) == pytest.approx(expected, rel=1e-6)


def test_the_loss_is_symmetric_and_knows_no_order() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 7, 5, generator=generator)
    loss = image_text_loss(images, texts, 0.1)
    torch.testing.assert_close(image_text_loss(texts, images, 0.1), loss)
    order = torch.randperm(7, generator=generator)
    torch.testing.assert_close(image_text_loss(images[order], texts[order], 0.1), loss)
    torch.testing.assert_close(image_text_loss(3 * images, texts, 0.1), loss)
    assert image_text_loss(images, texts.roll(1, 0), 0.1) != loss
    with pytest.raises(ValueError, match="expected"):
        image_text_loss(images, texts[:3], 0.1)


# ---------------------------------------------------------------------- training


COLORS = {"red": (230, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230), "yellow": (240, 230, 30)}


def world(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Squares whose name says color and size: (N, 3, 16, 16) uint8, (N, 5)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.full((n, 3, 16, 16), 255, dtype=torch.uint8)
    texts = torch.zeros(n, 5)
    colors = list(COLORS.values())
    for i in range(n):
        color, size = (
            int(torch.randint(4, (), generator=generator)),
            int(torch.randint(2, 8, (), generator=generator)),
        )
        images[i, :, 8 - size : 8 + size, 8 - size : 8 + size] = torch.tensor(colors[color]).view(3, 1, 1)
        texts[i, color], texts[i, 4] = 1.0, (size - 5) / 2
    return images, texts


OPTIONS = {
    "dim": 8,
    "width": 16,
    "patch_size": 4,
    "n_layers": 1,
    "n_heads": 2,
    "batch_size": 32,
    "epochs": 20,
}


@pytest.fixture(scope="module")
def tower() -> ImageTextTower:
    return ImageTextTower(**OPTIONS, learning_rate=0.005).fit(*world(160, 0), device="cpu", progress=False)


def test_pictures_find_their_names(tower: ImageTextTower) -> None:
    images, texts = world(48, 1)
    right = name_recall(tower.encode_images(images), tower.encode_texts(texts), k=10)
    wrong = name_recall(tower.encode_images(images), tower.encode_texts(texts.roll(1, 0)), k=10)
    assert right.low > right.chance == 10 / 48
    assert right.value > wrong.value + 0.4
    assert tower.log[-1]["loss"] < tower.log[0]["loss"] - 0.5


def test_vectors_are_of_length_one_and_do_not_depend_on_the_batch(tower: ImageTextTower) -> None:
    images, texts = world(20, 2)
    vectors = tower.encode_images(images)
    assert vectors.shape == (20, 8)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(20))
    torch.testing.assert_close(tower.encode_texts(texts).norm(dim=1), torch.ones(20))
    torch.testing.assert_close(tower.encode_images(images, batch_size=3), vectors, atol=1e-5, rtol=1e-4)
    assert tower.encode_images(images[:0]).shape == (0, 8)
    assert not vectors.requires_grad


def test_the_temperature_is_learned(tower: ImageTextTower) -> None:
    assert tower.log_temperature.exp().item() != pytest.approx(0.07, rel=1e-3)


def test_the_seed_decides_and_nothing_else() -> None:
    data = world(40, 0)
    before = torch.get_rng_state()
    runs = []
    for seed in (0, 0, 1):
        torch.rand(1)  # the global state is another for each run
        runs.append(
            ImageTextTower(**{**OPTIONS, "epochs": 2}, seed=seed).fit(*data, device="cpu", progress=False)
        )
    torch.set_rng_state(before)
    first, second, other = (run.encode_images(data[0]) for run in runs)
    assert torch.equal(first, second)
    assert not torch.allclose(first, other, atol=1e-3)


def test_training_stops_on_validation_and_keeps_the_best() -> None:
    tower = ImageTextTower(**{**OPTIONS, "epochs": 60}, patience=1, learning_rate=0.005)
    tower.fit(*world(80, 0), validation=world(40, 1), device="cpu", progress=False)
    looked = [entry["mrr"] for entry in tower.log if "mrr" in entry]
    images, texts = world(40, 1)
    ranks = name_recall(tower.encode_images(images), tower.encode_texts(texts)).ranks
    assert float((1 / ranks.double()).mean()) == pytest.approx(max(looked))


def test_it_goes_where_it_is_sent(device: torch.device) -> None:
    data = world(40, 0)
    tower = ImageTextTower(**{**OPTIONS, "epochs": 1}).fit(*data, device=device, progress=False)
    assert tower.encode_images(data[0]).device.type == device.type


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_saved_and_loaded(tmp_path: Path, pooling: str) -> None:
    data = world(30, 0)
    saved = ImageTextTower(**{**OPTIONS, "epochs": 1}, pooling=pooling).fit(
        *data, device="cpu", progress=False
    )
    saved.save_pretrained(tmp_path / "tower")
    assert sorted(path.name for path in (tmp_path / "tower").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    loaded = ImageTextTower.from_pretrained(tmp_path / "tower")
    assert loaded.config == saved.config
    assert torch.equal(loaded.encode_images(data[0]), saved.encode_images(data[0]))
    assert torch.equal(loaded.encode_texts(data[1]), saved.encode_texts(data[1]))


def test_what_loading_refuses(tmp_path: Path, tower: ImageTextTower) -> None:
    with pytest.raises(FileNotFoundError):
        ImageTextTower.from_pretrained(tmp_path)
    tower.save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-5])
    with pytest.raises(ValueError, match="is damaged or of another version"):
        ImageTextTower.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_class": "SASRec"}))
    with pytest.raises(ValueError, match="holds a SASRec"):
        ImageTextTower.from_pretrained(tmp_path)


def test_what_training_refuses() -> None:
    images, texts = world(8, 0)
    with pytest.raises(ValueError, match="a text's vector for each"):
        ImageTextTower(**OPTIONS).fit(images, texts[:5], progress=False)
    with pytest.raises(ValueError, match="validation pictures and texts must be of the sizes"):
        ImageTextTower(**OPTIONS).fit(images, texts, (images, texts[:, :2]), progress=False)
    with pytest.raises(ValueError, match="do not fill"):
        ImageTextTower(**{**OPTIONS, "patch_size": 5}).fit(images, texts, progress=False)
    with pytest.raises(ValueError, match="dropout"):
        ImageTextTower(dropout=1.0)
    with pytest.raises(TypeError):
        ImageTextTower(depth=3)
    with pytest.raises(RuntimeError, match="not fitted"):
        ImageTextTower().encode_images(images)


# ---------------------------------------------------------------------- augmentation


def test_moving_and_mirroring_keep_the_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.full((40, 3, 12, 12), 255, dtype=torch.uint8)
    images[:, :, 4:8, 3:6] = 10
    seen = moved_and_mirrored(images, generator)
    assert seen.shape == images.shape
    assert seen.dtype == images.dtype
    assert bool(((seen == 10).flatten(1).sum(1) == 3 * 12).all())
    columns = {tuple((image[0] == 10).any(0).nonzero().flatten().tolist()) for image in seen}
    assert len(columns) == 2  # one move of the batch, mirrored or not
    still = moved_and_mirrored(images, generator, by=0)
    same = (still == images).flatten(1).all(1)
    assert 8 < int(same.sum()) < 32
    assert torch.equal(still[~same].flip(3), images[~same])


# ---------------------------------------------------------------------- the measure


def test_recall_by_hand() -> None:
    texts = torch.eye(4)
    images = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.4, 0, 0], [0.1, 0.2, 0.05, 0.3], [0.0, 0.0, 0.0, 0.0]])
    found = name_recall(images, texts, k=2)
    assert found.ranks.tolist() == [1, 2, 4, 4]  # the last one's names are all equal: the worst place
    assert (found.value, found.chance) == (0.5, 0.5)
    # Wilson's interval of 2 in 4, as statsmodels gives it.
    assert (found.low, found.high) == pytest.approx((0.150036, 0.849964), abs=1e-5)
    with pytest.raises(ValueError, match="k must be at most 4"):
        name_recall(images, texts)


def test_at_random_the_recall_is_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 2000, 16, generator=generator)
    found = name_recall(images, texts, k=100)
    assert found.low <= found.chance == 0.05 <= found.high


# ---------------------------------------------------------------------- published models


def save(model: transformers.PreTrainedModel, folder: Path, mean: float = 0.5) -> Path:
    model.save_pretrained(folder)
    stated = {"image_mean": [mean] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    return folder


@pytest.fixture
def clip() -> transformers.CLIPModel:
    tiny = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    with isolated_rng(0):
        return transformers.CLIPModel(
            transformers.CLIPConfig(
                vision_config={**tiny, "image_size": 16, "patch_size": 4},
                text_config={**tiny, "vocab_size": 20},
                projection_dim=6,
            )
        ).eval()


def test_a_clip_in_a_folder(tmp_path: Path, clip: transformers.CLIPModel) -> None:
    images = drawn(5)
    found = encode_with_transformers(save(clip, tmp_path), images, batch_size=2, device="cpu", progress=False)
    pooled = clip.vision_model(pixel_values=pixels(images)).pooler_output
    expected = functional.normalize(clip.visual_projection(pooled), dim=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not found.requires_grad


def test_the_loss_is_that_of_transformers_clip(clip: transformers.CLIPModel) -> None:
    words = torch.arange(4 * 5).view(4, 5)
    out = clip(input_ids=words, pixel_values=pixels(drawn(4)), return_loss=True)
    ours = image_text_loss(out.image_embeds, out.text_embeds, 1 / clip.logit_scale.exp())
    torch.testing.assert_close(ours, out.loss)


def test_a_vit_in_a_folder(
    tmp_path: Path, published: transformers.ViTModel, state: dict[str, Tensor]
) -> None:
    images = drawn(3)
    found = encode_with_transformers(save(published, tmp_path), images, device="cpu", progress=False)
    own = from_vit_state(state, published.config.to_dict())
    torch.testing.assert_close(found, functional.normalize(own(pixels(images)), dim=1), atol=1e-5, rtol=1e-4)


def test_pictures_are_made_what_the_model_wants(tmp_path: Path, published: transformers.ViTModel) -> None:
    folder = save(published, tmp_path)
    plain = torch.full((1, 3, 16, 16), 200, dtype=torch.uint8)
    large = plain.repeat_interleave(2, 2).repeat_interleave(2, 3)  # of one color: the same at any size
    ours, theirs = (encode_with_transformers(folder, x, device="cpu", progress=False) for x in (plain, large))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    other = encode_with_transformers(save(published, tmp_path, mean=0.1), plain, device="cpu", progress=False)
    assert not torch.allclose(ours, other, atol=1e-3)


def test_published_models_that_are_refused(
    tmp_path: Path, clip: transformers.CLIPModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, folder = drawn(2), tmp_path / "clip"
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        encode_with_transformers(folder, images)
    save(clip, folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"has no preprocessor_config\.json"):
        encode_with_transformers(folder, images, progress=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(ValueError, match="neither a CLIP nor a ViT"):
        encode_with_transformers(folder, images, progress=False)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="has no safetensors file"):
        encode_with_transformers(folder, images, progress=False)


def test_a_model_that_lacks_weights(tmp_path: Path, clip: transformers.CLIPModel) -> None:
    save(clip, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("visual_projection.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights of its own model"):
        encode_with_transformers(tmp_path, drawn(1), progress=False)


def test_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ConnectionError, match="the hub cannot be reached"):
        encode_with_transformers("openai/clip-vit-base-patch32", drawn(1))


def test_a_tower_without_training_is_the_one_that_training_begins_with() -> None:
    images, texts = drawn(8), torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    options = {"patch_size": 4, "width": 12, "n_layers": 1, "n_heads": 3, "dim": 6, "batch_size": 8}
    blank = ImageTextTower(epochs=0, **options).fit(images, texts, device="cpu", progress=False)
    still = ImageTextTower(epochs=1, learning_rate=1e-12, **options)
    still.fit(images, texts, device="cpu", progress=False)
    assert blank.log == []
    torch.testing.assert_close(blank.encode_images(images), still.encode_images(images))
