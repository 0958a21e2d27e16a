"""MLD: masked multi-time diffusion of latents (Bounoua, Franzese and Michiardi 2023).

Stage 1 trains one deterministic autoencoder for each modality, separately: z_m = E_m(x_m). The
latents of the training set are then encoded once, standardised with its mean and standard
deviation, and kept.

Stage 2 trains one score network on all latents R = (z_1, .., z_M) together. The masked forward SDE

  dR = m(A_1) * [f(t) R dt + g(t) dW]                                                       (1)

diffuses the modalities of A_1 and leaves those of A_2 as they are. In multi-time that is t_m = t
for m in A_1 and t_m = 0 in A_2, and the distribution of each latent at its time has a closed form:
z_m(t_m) = alpha(t_m) z_m + sigma(t_m) eps. A_1 is drawn independently for each example. Beyond the
paper some modalities may be absent (t_m = 1), which guidance and generation without them need.
Modalities that an example of the training set lacks (see `data.missing`) are absent, too, and have
no loss. `losses` has this stage.

`sampling` integrates the reverse of (1) from noise, the given latents held at time 0,

  dR = m(A_1) * [(-f(t') R + g(t')^2 score(R, t')) dt + g(t') dW],  t' = T - t,             (2)

or its probability-flow ODE, by any solver along any path through multi-time.

Two baselines of the paper differ in the draw of times alone: `inpaint` trains on joint times only
and imposes what is given by perturbing it to the current time, along RePaint's path (without its
rising moves the given modalities have hardly any effect); `unidiffuser` draws independent times.
"""

from collections.abc import Sequence
import functools
from typing import Any

from mmdiff_jax.frameworks import autoencoding
from mmdiff_jax.frameworks.base import Framework
from mmdiff_jax.frameworks.mld import losses, sampling
from mmdiff_jax.frameworks.mld.model import make_model
from mmdiff_jax.modalities import Modality


def build(config: Any, modalities: Sequence[Modality]) -> Framework:
  """Builds MLD for some modalities.

  Args:
    config: reads `variant`, `autoencoder`, `score` and `sampling` as `configs/mld.py` has them.
    modalities: what is generated; the score network has all of them as inputs.

  Returns:
    The framework: one stage for each autoencoder, then the stage `score`.

  Raises:
    UserError: as `model.make_model`.
  """
  model = make_model(config, modalities)
  autoencoders = [
    autoencoding.autoencoder_stage(modality, model.codecs[modality.name], config)
    for modality in model.modalities
  ]
  generate = functools.partial(sampling.sample, model)
  return Framework(
    model.modalities,
    (*autoencoders, losses.make_stage(model, generate)),
    generate,
    functools.partial(autoencoding.reconstruct, model.codecs),
    functools.partial(sampling.evaluations, model),
  )
