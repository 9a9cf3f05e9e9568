"""A generator that upsamples by nearest neighbours, as a user would have it."""

from torch import Tensor, nn


class NearestGenerator(nn.Module):
    """Latent to image by two stages of {Upsample, 3x3 convolution, batch norm, LeakyReLU}."""

    def __init__(self, width: int = 8, side: int = 16, latent: int = 10) -> None:
        super().__init__()
        self.side = side // 4
        self.project = nn.Linear(latent, 2 * width * self.side**2)
        self.blocks = nn.Sequential(
            nn.BatchNorm2d(2 * width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, 2 * width, 3, stride=1, padding=1),
            nn.BatchNorm2d(2 * width, 0.8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, width, 3, stride=1, padding=1),
            nn.BatchNorm2d(width, 0.8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, 3, 3, stride=1, padding=1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        x = self.project(z)
        return self.blocks(x.view(x.shape[0], -1, self.side, self.side))
