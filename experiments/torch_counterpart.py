"""The network and the training step of `experiments.benchmark` in PyTorch, for comparison.

They are written like public PyTorch code of such models: each residual block has its own linear
layer for the embedded time, `torch.optim.Adam(params, lr)`, an EMA that loops over the parameters,
no compiler. `tuned` uses the fused Adam and computes the EMA with one `foreach` call instead. Both
index the data in memory.
"""

from collections.abc import Mapping

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mmdiff_jax.networks import embeddings, mlp


class ResBlock(nn.Module):
  """The counterpart of `mlp.ResBlock` and its shift; modules are named as Flax names them."""

  def __init__(self, channels: int, width: int, groups: int, embedding: int):
    super().__init__()
    self.GroupNorm_0 = nn.GroupNorm(groups, channels, eps=mlp.EPSILON)
    self.Dense_0 = nn.Linear(channels, width)
    self.shift = nn.Linear(embedding, width)
    self.GroupNorm_1 = nn.GroupNorm(groups, width, eps=mlp.EPSILON)
    self.Dense_1 = nn.Linear(width, width)
    self.Dense_2 = nn.Linear(channels, width) if channels != width else nn.Identity()

  def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Maps `x` [B, channels] to [B, width]; `time` is [B, embedding] or [1, embedding]."""
    h = self.Dense_0(functional.silu(self.GroupNorm_0(x)))
    h = h + self.shift(functional.silu(time))
    h = self.Dense_1(functional.silu(self.GroupNorm_1(h)))
    return h + self.Dense_2(x)


class ScoreMLP(nn.Module):
  """The counterpart of `mlp.ScoreMLP`; modules are named as Flax names them."""

  def __init__(self, sizes: Mapping[str, int], width: int, groups: int = 8, embedding: int = 256):
    super().__init__()
    self.sizes = dict(sorted(sizes.items()))
    total = sum(sizes.values())
    features = embeddings.MultiTimeEmbedding.features
    self.MultiTimeEmbedding_0 = nn.ModuleDict(
      {name: nn.Linear(features, embedding) for name in self.sizes}
    )
    self.Dense_1 = nn.Linear(total, width)
    for i in range(4):
      setattr(self, f"Dense_{i + 2}", nn.Linear(width, width))
    for i in range(mlp.NUM_BLOCKS):
      channels = width if i < 4 else 2 * width
      setattr(self, f"ResBlock_{i}", ResBlock(channels, width, groups, embedding))
    self.GroupNorm_0 = nn.GroupNorm(groups, width, eps=mlp.EPSILON)
    self.Dense_6 = nn.Linear(width, total)
    frequencies = np.geomspace(1.0, embeddings.MAX_FREQUENCY, features // 2, dtype=np.float32)
    self.register_buffer("frequencies", torch.tensor(frequencies))

  def forward(
    self, x: Mapping[str, torch.Tensor], t: Mapping[str, torch.Tensor]
  ) -> dict[str, torch.Tensor]:
    """Maps latents [B, d] and times [B] or [1] to predictions [B, d]."""
    time = 0.0
    for name, embed in self.MultiTimeEmbedding_0.items():
      angles = t[name][:, None] * self.frequencies
      time = time + embed(torch.cat([angles.cos(), angles.sin()], dim=-1))

    first = self.Dense_1(torch.cat([x[name] for name in self.sizes], dim=-1))
    skip0 = self.ResBlock_0(first, time)
    skip1 = self.ResBlock_1(self.Dense_2(skip0), time)
    h = self.ResBlock_2(self.Dense_3(skip1), time)
    h = self.ResBlock_3(h, time)
    h = self.Dense_4(self.ResBlock_4(torch.cat([h, skip1], dim=-1), time))
    h = self.Dense_5(self.ResBlock_5(torch.cat([h, skip0], dim=-1), time))
    h = self.ResBlock_6(torch.cat([h, first], dim=-1), time)
    h = self.Dense_6(functional.silu(self.GroupNorm_0(h)))
    return dict(zip(self.sizes, h.split(list(self.sizes.values()), dim=-1), strict=True))


def load(network: ScoreMLP, params: Mapping) -> None:
  """Copies the parameters of `mlp.ScoreMLP` (the dict under "params") into `network`."""
  state = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    *modules, kind = [entry.key for entry in path]
    # Copies, since PyTorch must not train in memory that JAX owns.
    value = torch.tensor(np.asarray(leaf))
    value = value.T if kind == "kernel" else value
    kind = "bias" if kind == "bias" else "weight"
    if modules == ["Dense_0"]:  # The shifts of all blocks.
      for i, part in enumerate(value.chunk(mlp.NUM_BLOCKS)):
        state[f"ResBlock_{i}.shift.{kind}"] = part
    else:
      state[".".join([*modules, kind])] = value
  network.load_state_dict(state | {"frequencies": network.frequencies})


class Trainer:
  """The masked multi-time training step on a VP linear schedule, with Adam and EMA."""

  def __init__(
    self,
    network: ScoreMLP,
    data: Mapping[str, np.ndarray],
    *,
    batch_size: int,
    learning_rate: float,
    decay: float,
    beta_min: float,
    beta_max: float,
    tuned: bool,
  ):
    self.network = network
    self.data = {name: torch.tensor(value) for name, value in data.items()}
    self.batch_size = batch_size
    self.decay = decay
    self.beta = beta_min, beta_max
    self.tuned = tuned
    self.params = list(network.parameters())
    self.ema = [p.detach().clone() for p in self.params]
    self.optimizer = torch.optim.Adam(
      self.params, lr=learning_rate, **({"fused": True} if tuned else {})
    )
    # The subsets of modalities that are diffused: all of them first, then the proper subsets.
    count = 2 ** len(self.data) - 1
    bits = torch.arange(count, 0, -1)[:, None] >> torch.arange(len(self.data))
    self.subsets = (bits & 1).bool()
    self.start = 0

  def loss(self) -> torch.Tensor:
    """Draws noise and times for each example; returns the error of the predicted noise."""
    rows = slice(self.start, self.start + self.batch_size)
    num_rows = len(next(iter(self.data.values())))
    self.start = (self.start + self.batch_size) % (num_rows - self.batch_size)
    # Row 0 of `subsets` diffuses everything; in the others some modalities are given.
    some_given = torch.rand(self.batch_size) < 0.5
    subset = torch.randint(1, len(self.subsets), (self.batch_size,)) * some_given
    diffused = self.subsets[subset]
    time = (1.0 - (1.0 - 1e-3) * torch.rand(self.batch_size))[:, None] * diffused
    beta_min, beta_max = self.beta
    integral = time * (beta_min + 0.5 * time * (beta_max - beta_min))
    alpha, sigma = (-0.5 * integral).exp(), (-torch.expm1(-integral)).sqrt()
    x, t, noise = {}, {}, {}
    for i, (name, value) in enumerate(self.data.items()):
      t[name] = time[:, i]
      noise[name] = torch.randn(self.batch_size, value.shape[1])
      x[name] = alpha[:, i : i + 1] * value[rows] + sigma[:, i : i + 1] * noise[name]
    prediction = self.network(x, t)
    error = [(prediction[name] - noise[name]).square().mean(dim=-1) for name in self.data]
    return (torch.stack(error, dim=-1) * diffused).mean()

  def step(self) -> torch.Tensor:
    """Takes one step and returns the loss."""
    loss = self.loss()
    self.optimizer.zero_grad()
    loss.backward()
    self.optimizer.step()
    with torch.no_grad():
      if self.tuned:
        torch._foreach_lerp_(self.ema, self.params, 1.0 - self.decay)
      else:
        for s, p in zip(self.ema, self.params, strict=True):
          s.sub_((1.0 - self.decay) * (s - p))
    return loss.detach()
