"""A discriminator that downsamples by average pooling, as a user would have it."""

from torch import Tensor, nn


class PoolingDiscriminator(nn.Module):
    """Image to score by three stages of {3x3 convolution, AvgPool2d}, nested."""

    def __init__(self, width: int = 8, side: int = 16) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.AvgPool2d(2), nn.LeakyReLU(0.2)
        )
        self.blocks = nn.Sequential(
            self.stage(width, 2 * width), self.stage(2 * width, 4 * width), nn.Flatten()
        )
        self.score = nn.Linear(4 * width * (side // 8) ** 2, 1)

    @staticmethod
    def stage(channels_in: int, channels_out: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.AvgPool2d(2),
            nn.BatchNorm2d(channels_out),
            nn.LeakyReLU(0.2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.blocks(self.first(x)))
