"""MT-Diffusion: several modalities in one shared diffusion space, with a head for each.

The paper's full text is not public here: what follows was derived independently and is checked by
closed forms. The forward process, from the modalities' encoders E_i to q(z_s | z_t, z_0, X), is in
`process`, whose equations (1) to (5) are meant below.

One network takes z_t and predicts the noise and, by one head D_i each, the modalities (`heads`).
Its loss (`losses`) is the practical form of the bound (`bound`) on -log p(X),

  E_{t, eps} [|eps - eps_theta(z_t, t)|^2 + sum_i lambda_i l_i(x_i, D_i(h_t))],             (6)

with squared error for l_i, or cross-entropy where a modality has classes. Their minima are the
posterior means E[x_i | z_t], and the posterior probabilities.

Generation (`sampling`) draws from (4) at each t with z_0 and E rebuilt from the heads' predictions,
in which a given modality takes its own value. A target's own value enters nowhere: a label that is
to be predicted is not in E. Where little noise is left, and the network has all given modalities as
input, z_0 is that of eps_theta.

Two ways to condition (`config.sampling.mode`):

* replacement: the heads read z_t alone. z_t is then not what the heads were trained on, since a
  given x_i says more of the others than z_t does: biased even with perfect heads.
* informed: the heads also read the given modalities, as they do in training. Guidance is between
  their predictions with them and without.

Targets are read at the last step, as means given z_1 (or likeliest classes). The main modality is
read off z_1 itself, less its noise and the part of the others, which is exact to sigma_1 / a_1 and
to the errors of the others; its head is less exact there. The others are read off their heads. With
the aggregation "start" z_1 has all modalities in it, but as a sum: what the sum leaves open of a
target has no spread. (Of two Gaussians of variance 1 and correlation 0.8 with E = x_1 + x_2,
generated jointly, either is z_1 / 2: variance 0.9, correlation 1.) With "steps" what was added has
left z_t again at t = 1, so that all but the main modality are read as their means given it.
"""

from collections.abc import Sequence
import functools
from typing import Any

from mmdiff_jax.frameworks.base import Framework
from mmdiff_jax.frameworks.mt_diffusion import bound, losses, sampling
from mmdiff_jax.frameworks.mt_diffusion.model import make_model
from mmdiff_jax.frameworks.normalize import identity_reconstruct
from mmdiff_jax.modalities import Modality


def build(config: Any, modalities: Sequence[Modality]) -> Framework:
  """Builds MT-Diffusion for some modalities.

  Args:
    config: as `configs/mt_diffusion.py` has it.
    modalities: all that share the space, `config.main` among them.

  Returns:
    The framework, of the one stage `mt_diffusion`.

  Raises:
    UserError: as `model.make_model`.
  """
  model = make_model(config, modalities)
  generate = functools.partial(sampling.sample, model)
  rows = config.evaluation.bound
  return Framework(
    model.modalities,
    (losses.make_stage(model, generate),),
    generate,
    identity_reconstruct,
    sampling.evaluations,
    functools.partial(bound.measure, model, num=rows) if rows else None,
  )
