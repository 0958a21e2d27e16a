"""CoDi: any to any, from diffusion models trained apart and aligned (Tang et al. 2023).

The paper's text here is a summary; what it leaves open was filled in independently. No stage needs
an example with more than two modalities. Each freezes what those before it trained.

1. An autoencoder for each modality: z_m = E_m(x_m).
2. Bridging Alignment: prompt encoders C_m into one space, by contrast with the bridge (text): first
   the bridge and one other modality together, then each further one against the frozen bridge. The
   loss is the symmetric InfoNCE of a batch, `losses.info_nce`. A pretrained encoder is frozen from
   the start, so that the temperature may be all that is left to train.
3. A latent diffusion model for each modality, on all pairs that it is in, prompted by its partner,

     L_m = E |v - v_m(z_m(t), t, C_n(x_n))|^2,                                               (1)

   with the prompt withheld in some examples, and a little noise on it: a prompt at generation may
   be of a modality that this model has never been prompted by.
4. Latent Alignment: environment encoders V_m and layers that attend to the *other* modalities'
   V_n(z_n(t)), all at one shared time t. The layers' last ones start at zero, so that this stage
   starts as the one before ended. One link after the other, each on the pairs of two modalities:
   first of both, then of the second alone, against the frozen first:

     L = sum_m E |v - v_m(z_m(t), t, c, V_n(z_n(t)))|^2 + InfoNCE(V_m(z_m(t)), V_n(z_n(s))). (2)

   The contrast has independent times t and s: a shared one would tell rows apart by itself.
5. Generation of any subset S from any other: all of S fall together from t = 1 to 0, each reading
   the others' V; the prompt is c = sum_n a_n C_n(x_n) over what is given, sum_n a_n = 1.

`model` has the record, `networks` the networks' outputs, `losses` the losses of stages 2 to 4,
`stages` the stages, and `sampling` the generation.
"""

from collections.abc import Sequence
import functools
from typing import Any

from mmdiff_jax.frameworks import autoencoding
from mmdiff_jax.frameworks.base import Framework
from mmdiff_jax.frameworks.codi import sampling, stages
from mmdiff_jax.frameworks.codi.model import make_model
from mmdiff_jax.modalities import Modality


def build(config: Any, modalities: Sequence[Modality]) -> Framework:
  """Builds CoDi for some modalities.

  Args:
    config: as `configs/codi.py` has it.
    modalities: all of them, `config.bridging.bridge` among them.

  Returns:
    The framework: stages `autoencoder_NAME`, `bridging_NAME`, `diffusion_NAME`, and an
    `alignment_NAME` for each link.

  Raises:
    UserError: as `model.make_model`.
  """
  model = make_model(config, modalities)
  generate = functools.partial(sampling.sample, model)
  autoencoders = [
    autoencoding.autoencoder_stage(modality, model.codecs[name], config)
    for name, modality in model.modalities.items()
  ]
  return Framework(
    tuple(model.modalities.values()),
    (*autoencoders, *stages.make_stages(model, generate)),
    generate,
    functools.partial(autoencoding.reconstruct, model.codecs),
    sampling.evaluations,
    can_regenerate_given=True,
    shuffled=functools.partial(generate, shuffled=True),
  )
