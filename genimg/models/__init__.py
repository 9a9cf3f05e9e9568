"""The GAN and the VAE that genimg ships, built of its own layers."""

from genimg.models import gan, vae

__all__ = ["gan", "vae"]
