"""Latent vectors, the ways between them, and pictures of what they give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genimg.models import gan, vae
from genimg.train import images, sampling


@pytest.fixture(params=["gan", "vae"])
def model(request: pytest.FixtureRequest) -> sampling.Model:
    cls = gan.Generator if request.param == "gan" else vae.VAE
    return cls("article", image_size=16, channels=1, width=4, latent_dim=5)


def test_latents_follow_their_seed(model: sampling.Model) -> None:
    z = sampling.latents(6, model, seed=1)
    assert z.shape == (6, 5)
    torch.rand(3)
    assert torch.equal(z, sampling.latents(6, model, seed=1))
    assert not torch.equal(z, sampling.latents(6, model, seed=2))


def test_uses_of_a_seed_draw_different_numbers() -> None:
    seeds = {sampling.seed_for(seed, use) for seed in (0, 1) for use in ("noise", "order")}
    assert len(seeds) == 4
    for seed in seeds:
        torch.Generator().manual_seed(seed)


def test_draw_is_in_eval_mode_and_leaves_the_model_alone(model: sampling.Model) -> None:
    before = {name: x.clone() for name, x in model.state_dict().items()}
    model.train()
    z = sampling.latents(300, model, seed=0)  # more than go in at once
    made = sampling.draw(model, z)
    assert model.training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert made.shape == (300, 1, 16, 16)
    # One image does not depend on the others, as it would by batch statistics.
    torch.testing.assert_close(made[299:], sampling.draw(model, z[299:]))


def test_straight_way() -> None:
    a, b = torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 2.0]])
    way = sampling.interpolate(a, b, 3, spherical=False)
    assert way.tolist() == [[[0, 0], [2, 1], [4, 2]]]


def test_spherical_way() -> None:
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    way = sampling.interpolate(a, b, 3)
    torch.testing.assert_close(way, torch.tensor([[[2, 0], [2**0.5, 2**0.5], [0, 2]]]))
    a, b = torch.randn(2, 5, 100)
    way = sampling.interpolate(a, b, 4)
    torch.testing.assert_close((way[:, 0], way[:, -1]), (a, b))
    lengths = way.norm(dim=-1)
    assert (lengths > 0.9 * torch.minimum(a.norm(dim=-1), b.norm(dim=-1))[:, None]).all()


@pytest.mark.parametrize("b", [[1.0, 2.0], [2.0, 4.0], [-1.0, -2.0], [0.0, 0.0]])
def test_spherical_way_where_there_is_no_angle(b: list[float]) -> None:
    ends = torch.tensor([[1.0, 2.0]]), torch.tensor([b])
    straight = sampling.interpolate(*ends, 5, spherical=False)
    torch.testing.assert_close(sampling.interpolate(*ends, 5), straight, atol=1e-5, rtol=0)


def test_ways_refuse() -> None:
    with pytest.raises(ValueError, match="2 steps or more, not 1"):
        sampling.interpolate(torch.zeros(1, 2), torch.zeros(1, 2), 1)
    with pytest.raises(ValueError, match=r"\[N, D\] both"):
        sampling.interpolate(torch.zeros(1, 2), torch.zeros(2, 2), 3)


def test_bytes_of_pixels() -> None:
    x = torch.tensor([-1.5, -1.0, -0.5, 0.0, 1.0, 1.5])
    assert images.to_uint8(x).tolist() == [0, 0, 64, 128, 255, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_shows_every_image_in_its_place(channels: int) -> None:
    x = torch.linspace(-1, 0.9, 5)[:, None, None, None].expand(5, channels, 4, 6)
    picture = np.asarray(images.grid(x, columns=3, scale=2))
    assert picture.shape[:2] == (2 * 10 + 2, 3 * 14 + 2)
    assert (picture.ndim == 3) == (channels == 3)
    for i, value in enumerate(images.to_uint8(x[:, 0, 0, 0]).tolist()):
        top, left = 2 + i // 3 * 10, 2 + i % 3 * 14
        assert (picture[top : top + 8, left : left + 12] == value).all()
    assert (picture[12:, 30:] == 255).all()  # no sixth image


def test_png_says_where_it_comes_from(tmp_path: Path) -> None:
    picture = images.grid(torch.zeros(4, 1, 8, 8))
    images.write_png(tmp_path / "a.png", picture, source=images.GENERATED)
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.size == (22, 22)
        assert opened.info["Software"] == "genimg"
        assert "digitalsourcetype/trainedAlgorithmicMedia" in opened.info["XML:com.adobe.xmp"]
    images.write_png(tmp_path / "b.png", picture)
    with Image.open(tmp_path / "b.png") as opened:
        assert "XML:com.adobe.xmp" not in opened.info


def test_sheet_has_all_blocks() -> None:
    white = torch.full((3, 1, 8, 8), -1.0)
    picture = images.sheet(
        [images.Block("three", white, 3), images.Block("two", white[:2], 2)], scale=1
    )
    dark = np.asarray(picture.convert("L")) == 0
    assert dark[26 + 2 : 26 + 10, 2:10].all()
    assert dark[2 * 26 + 12 + 2 : 2 * 26 + 12 + 10, 12:20].all()
    assert dark[:26].any()  # the label
