"""Take the gradient penalty of WGAN-GP through a converted critic, and compare it with PyTorch.

The penalty holds a gradient, so that its own gradient needs second derivatives. Run it with
`python examples/gradient_penalty.py`. It needs nothing but PyTorch and genimg.
"""

import copy

import torch
from torch import Tensor, nn

import genimg


def down(channels_in: int, channels_out: int) -> list[nn.Module]:
    """Layers that halve the height and the width."""
    return [nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]


def critic_loss(critic: nn.Module, real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """E[D(fake)] - E[D(real)] + 10 E[(|dD/dx| - 1)^2], x between real and fake images.

    Source: Gulrajani et al., "Improved training of Wasserstein GANs", 2017, algorithm 1.
    """
    x = torch.lerp(real, fake, share).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
    return critic(fake).mean() - critic(real).mean() + 10 * penalty


def parameter_gradients(critic: nn.Module, *images: Tensor) -> tuple[float, Tensor]:
    """The loss, and its gradients with respect to all parameters as one vector."""
    loss = critic_loss(critic, *images)
    gradients = torch.autograd.grad(loss, list(critic.parameters()))
    return loss.item(), torch.cat([gradient.flatten() for gradient in gradients])


torch.manual_seed(0)
blocks = [*down(3, 32), *down(32, 64), *down(64, 128), nn.Conv2d(128, 1, 4), nn.Flatten(0)]
plain = nn.Sequential(*blocks)
model = copy.deepcopy(plain)
report = genimg.convert(model)
print(*(f"{fusion.layers} run as one {fusion.op}" for fusion in report.fused), sep="\n")

real, fake = torch.rand(2, 32, 3, 32, 32) * 2 - 1
share = torch.rand(32, 1, 1, 1)
loss, gradients = parameter_gradients(model, real, fake, share)
plain_loss, plain_gradients = parameter_gradients(plain, real, fake, share)
difference = (gradients - plain_gradients).norm() / plain_gradients.norm()
print(f"loss with the penalty: {loss:.6f}, plain PyTorch {plain_loss:.6f}")
print(f"relative difference of the {len(gradients)} parameters' gradients: {difference:.1e}")
