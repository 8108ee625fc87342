"""The families of long convolution kernels: Legendre polynomials, Hyena's implicit MLP, and free lags."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hyenarec import ops
from hyenarec.config import ModelConfig
from hyenarec.config.auto import settled


class LegendreKernel(nn.Module):
    """κ[d, τ] = exp(-decay[d] τ) Σ_n coeffs[d, n] P_n(2τ/(T-1) - 1): N + 1 numbers a channel, any length."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.horizon = settled(config.max_len)
        self.coeffs = nn.Parameter(torch.randn(channels, config.num_coeffs))
        self.log_decay = _log_decay(channels, config)
        with torch.no_grad():
            self.coeffs.div_(self(self.horizon).norm(dim=1, keepdim=True))

    @property
    def decay(self) -> Tensor:
        """Rate of the exponential decay per lag, `[channels]`; zeros if none is learned."""
        return _decay(self.log_decay, self.coeffs)

    def forward(self, length: int) -> Tensor:
        """The kernel's first `length` lags, `[channels, length]`; the model never needs them."""
        return ops.legendre_kernel(self.coeffs, self.decay, self.horizon, min(length, self.horizon))


class MLPKernel(nn.Module):
    """Hyena's implicit filter (Poli et al. 2023): a sine MLP on complex exponentials of τ, decaying."""

    BANDS, HIDDEN, FREQUENCY = 8, 64, 10.0

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.horizon = settled(config.max_len)
        self.log_decay = _log_decay(channels, config)
        self.hidden = nn.ModuleList(
            [nn.Linear(2 * self.BANDS + 1, self.HIDDEN), nn.Linear(self.HIDDEN, self.HIDDEN)]
        )
        self.out = nn.Linear(self.HIDDEN, channels, bias=False)
        self.frequency = nn.Parameter(torch.full((self.HIDDEN,), self.FREQUENCY))
        self.gain = nn.Parameter(torch.ones(channels))
        with torch.no_grad():
            self.gain.div_(self(self.horizon).norm(dim=1))

    def forward(self, length: int) -> Tensor:
        """The kernel's first `length` lags, `[channels, length]`; in full precision even under autocast."""
        with torch.autocast(self.gain.device.type, enabled=False):
            return self._evaluate(length)

    def _evaluate(self, length: int) -> Tensor:
        lag = torch.arange(min(length, self.horizon), device=self.gain.device, dtype=self.gain.dtype)
        time = lag[:, None] / max(self.horizon - 1, 1)
        angle = (
            2
            * math.pi
            * time
            * torch.linspace(1e-4, self.BANDS - 1, self.BANDS, device=lag.device, dtype=lag.dtype)
        )
        x = torch.cat([time, angle.cos(), angle.sin()], dim=1)
        for layer in self.hidden:
            x = torch.sin(self.frequency * layer(x))
        fade = torch.exp(-_decay(self.log_decay, self.gain)[:, None] * lag)
        kernel: Tensor = self.gain[:, None] * self.out(x).t() * fade
        return kernel


class FreeKernel(nn.Module):
    """One learned number for each lag and channel: the most general kernel, T numbers a channel."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        horizon = settled(config.max_len)
        fade = torch.exp(-_geometric_decay(channels, horizon)[:, None] * torch.arange(horizon))
        kernel = torch.randn(channels, horizon) * fade
        self.kernel = nn.Parameter(kernel / kernel.norm(dim=1, keepdim=True))

    def forward(self, length: int) -> Tensor:
        """The kernel's first `length` lags, `[channels, length]`."""
        return self.kernel[:, :length]


KERNELS: dict[str, type[LegendreKernel] | type[MLPKernel] | type[FreeKernel]] = {
    "legendre": LegendreKernel,
    "mlp": MLPKernel,
    "free": FreeKernel,
}


def _geometric_decay(channels: int, horizon: int) -> Tensor:
    """Rates spread geometrically over the channels, from bursts (1/2 a step) to the whole horizon (1/T)."""
    return torch.logspace(math.log10(0.5), math.log10(1 / max(horizon, 2)), channels)


def _log_decay(channels: int, config: ModelConfig) -> nn.Parameter | None:
    return nn.Parameter(_geometric_decay(channels, settled(config.max_len)).log()) if config.decay else None


def _decay(log_decay: nn.Parameter | None, like: Tensor) -> Tensor:
    return like.new_zeros(like.shape[0]) if log_decay is None else log_decay.exp()
