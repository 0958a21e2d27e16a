"""A user's pretrained networks: a frozen autoencoder or prompt encoder in place of ours.

The config names a function, `my_package.my_module:function`, which takes the `Modality` and returns
a `Pretrained`: parameters and pure functions of them, from any library. They are never trained.
"""

from collections.abc import Callable, Mapping
import dataclasses
import importlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from mmdiff_jax.errors import UserError
from mmdiff_jax.modalities import Modality
from mmdiff_jax.networks.prompts import unit

_BATCH = 5  # Examples in the check of shapes: any number that is unlikely to be a size.


class Pretrained(NamedTuple):
  """The return value of a user's function.

  Attributes:
    params: any pytree of arrays. The run's checkpoints keep them, and everything that is trained on
      top of them continues with these, whatever the function returns later.
    encode: `(params, x) -> z`, pure: a batch of model inputs (see `Modality`) to float32
      [batch, latent]; for a video with one latent per frame, [batch, frames, latent]. It may be
      called with thousands of examples at once.
    decode: `(params, z) -> x`, pure: back to the shape and type of the model input. A prompt
      encoder needs none.
  """

  params: Any
  encode: Callable[[Any, Array], Array]
  decode: Callable[[Any, Array], Array] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class PretrainedModule:
  """A `Pretrained` with the interface of a Flax module.

  Attributes:
    network: the return value of the user's function.
    latent: size of an encoding.
    path: of the user's function, for messages.
  """

  network: Pretrained
  latent: int
  path: str

  @property
  def entry(self) -> dict[str, Any]:
    """The parameters as an entry of a framework's params: leaves by number, in the pytree's order.

    Checkpoints restore dicts and arrays, whatever containers the pytree had.
    """
    return {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(self.network.params))}

  def apply(
    self, entry: Mapping[str, Any], x: Shaped[Array, "batch ..."], method: str = "encode"
  ) -> Shaped[Array, "batch ..."]:
    """Encodes, or with the method "decode" decodes, with the parameters in `entry`.

    Raises:
      UserError: the function now returns parameters of other shapes than those of the entry.
    """
    leaves = self.entry
    if {n: jnp.shape(leaf) for n, leaf in leaves.items()} != {n: x.shape for n, x in entry.items()}:
      raise UserError(
        f"{self.path} returns parameters of other shapes than those in this run's checkpoint. Go"
        " back to the version that the run was trained with, or train a new run."
      )
    structure = jax.tree.structure(self.network.params)
    params = jax.tree.unflatten(structure, [entry[name] for name in leaves])
    return getattr(self.network, method)(params, x)


def autoencoder(modality: Modality, path: str, latent: int, *, frames: bool) -> PretrainedModule:
  """Loads the autoencoder that `config.autoencoder.NAME.pretrained` names.

  Args:
    modality: what the autoencoder encodes.
    path: `my_package.my_module:function`.
    latent: `config.autoencoder.NAME.latent`.
    frames: whether the latent keeps the first axis of the model input, that of frames.

  Raises:
    UserError: there is no such function, or its networks have other shapes or types.
  """
  size = f"config.autoencoder.{modality.name}"
  setting = f"{size}.pretrained is {path!r}"
  network = _load(modality, path, setting)
  if network.decode is None:
    raise UserError(
      f"{setting}, which returns no decode; an autoencoder needs Pretrained(.., decode)."
    )
  x = _model_input(modality)
  shape = (*x.shape[: 1 + frames], latent)
  z = jax.ShapeDtypeStruct(shape, jnp.float32)
  remedy = f"as {size}.latent={latent} says. Change that field, or flatten encode's result"
  _check(f"{setting}, whose encode returns", network.encode, network.params, x, z, remedy)
  remedy = f"as the model input of {modality.name!r}"
  _check(f"{setting}, whose decode returns", network.decode, network.params, z, x, remedy)
  return PretrainedModule(network, latent, path)


def prompt_encoder(modality: Modality, path: str, size: int) -> PretrainedModule:
  """Loads the prompt encoder of `config.bridging.pretrained.NAME`, its vectors scaled to length 1.

  Args:
    modality: what the encoder reads.
    path: `my_package.my_module:function`.
    size: `config.bridging.network.size`.

  Raises:
    UserError: there is no such function, or its network has other shapes or types.
  """
  setting = f"config.bridging.pretrained.{modality.name} is {path!r}"
  network = _load(modality, path, setting)
  z = jax.ShapeDtypeStruct((_BATCH, size), jnp.float32)
  remedy = f"as config.bridging.network.size={size} says; all prompts have one size"
  _check(
    f"{setting}, whose encode returns",
    network.encode,
    network.params,
    _model_input(modality),
    z,
    remedy,
  )
  directions = network._replace(encode=lambda params, x: unit(network.encode(params, x)))
  return PretrainedModule(directions, size, path)


def _load(modality: Modality, path: str, setting: str) -> Pretrained:
  """Imports and calls the user's function."""
  if not re.fullmatch(r"\w+(\.\w+)*:\w+", path):
    raise UserError(f"{setting}; it must be of the form my_package.my_module:function.")
  module_name, name = path.split(":")
  try:
    module = importlib.import_module(module_name)
  except ImportError as error:
    raise UserError(
      f"{setting}, but {module_name} cannot be imported ({error}). It is searched for in the folder"
      " where you start the program, in PYTHONPATH and among the installed packages."
    ) from error
  function = getattr(module, name, None)
  if not callable(function):
    raise UserError(f"{setting}, but {module} has no function {name!r}.")
  network = function(modality)
  if not isinstance(network, Pretrained):
    raise UserError(
      f"{setting}, which returned {type(network).__name__} for the modality {modality.name!r}; it"
      f" must return {Pretrained.__module__}.Pretrained."
    )
  return network


def _model_input(modality: Modality) -> jax.ShapeDtypeStruct:
  dtype = jnp.int32 if modality.num_classes else jnp.float32
  return jax.ShapeDtypeStruct((_BATCH, *modality.shape), dtype)


def _check(subject, function, params, inputs, expected, remedy) -> None:
  output = jax.eval_shape(function, params, inputs)
  if _description(output) != _description(expected):
    raise UserError(
      f"{subject} {_description(output)} for {_description(inputs)}; it must be"
      f" {_description(expected)}, {remedy}."
    )


def _description(output: Any) -> str:
  if not hasattr(output, "shape"):
    return f"a {type(output).__name__}"
  return f"{output.dtype} {list(output.shape)}"
