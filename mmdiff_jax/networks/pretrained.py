"""Pretrained networks of the user's: a frozen autoencoder or prompt encoder in place of ours.

The config names a function, `my_package.my_module:function`, which takes the `Modality` and returns
a `Pretrained`: parameters and pure functions of them, from whatever library. They are never
trained.
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

_BATCH = 5  # Examples in the trial of shapes: any number that is not likely to be a size.


class Pretrained(NamedTuple):
  """What a user's function returns.

  Attributes:
    params: any pytree of arrays. The run's checkpoints keep them, and all that is trained upon them
      goes on with these, whatever the function brings later.
    encode: `(params, x) -> z`, pure: a batch in the model's view (see `Modality`) to float32
      [batch, latent]; of a video whose latents are those of its frames, [batch, frames, latent].
      Thousands of examples may come at once.
    decode: `(params, z) -> x`, pure: the way back, of the view's shape and type. A prompt encoder
      needs none.
  """

  params: Any
  encode: Callable[[Any, Array], Array]
  decode: Callable[[Any, Array], Array] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class PretrainedModule:
  """A `Pretrained` with the interface of a Flax module.

  Attributes:
    network: what the user's function returned.
    latent: size of what it encodes to.
    path: where it came from.
  """

  network: Pretrained
  latent: int
  path: str

  @property
  def entry(self) -> dict[str, Any]:
    """The parameters as an entry of a framework's: leaves by number, in the order of the pytree.

    Checkpoints give back dicts and arrays, whatever containers the pytree had.
    """
    return {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(self.network.params))}

  def apply(
    self, entry: Mapping[str, Any], x: Shaped[Array, "batch ..."], method: str = "encode"
  ) -> Shaped[Array, "batch ..."]:
    """Encodes, or with the method "decode" decodes, by the parameters in `entry`.

    Raises:
      UserError: the function brings other parameters now than when the entry was made.
    """
    own = self.entry
    if {n: jnp.shape(leaf) for n, leaf in own.items()} != {n: x.shape for n, x in entry.items()}:
      raise UserError(
        f"{self.path} brings parameters of other shapes than those that this run keeps in its"
        " checkpoint. Go back to the version that the run was trained with, or train another."
      )
    structure = jax.tree.structure(self.network.params)
    params = jax.tree.unflatten(structure, [entry[name] for name in own])
    return getattr(self.network, method)(params, x)


def autoencoder(modality: Modality, path: str, latent: int, *, frames: bool) -> PretrainedModule:
  """The autoencoder that `config.autoencoder.NAME.pretrained` names.

  Args:
    modality: what it is of.
    path: `my_package.my_module:function`.
    latent: `config.autoencoder.NAME.latent`.
    frames: whether the view's first axis is one of the latent's, too.

  Raises:
    UserError: there is no such function, or what it brings has other shapes or types.
  """
  size = f"config.autoencoder.{modality.name}"
  said = f"{size}.pretrained is {path!r}"
  network = _bring(modality, path, said)
  if network.decode is None:
    raise UserError(f"{said}, which brings no decode; an autoencoder needs Pretrained(.., decode).")
  x = _view(modality)
  shape = (*x.shape[: 1 + frames], latent)
  z = jax.ShapeDtypeStruct(shape, jnp.float32)
  remedy = f"as {size}.latent={latent} says. Set that, or flatten what encode gives"
  _check(f"{said}, whose encode makes", network.encode, network.params, x, z, remedy)
  remedy = f"as the model's view of {modality.name!r} is"
  _check(f"{said}, whose decode makes", network.decode, network.params, z, x, remedy)
  return PretrainedModule(network, latent, path)


def prompt_encoder(modality: Modality, path: str, size: int) -> PretrainedModule:
  """The prompt encoder of `config.bridging.pretrained.NAME`, its vectors brought to length 1.

  Args:
    modality: what it reads.
    path: `my_package.my_module:function`.
    size: `config.bridging.network.size`.

  Raises:
    UserError: there is no such function, or what it brings has other shapes or types.
  """
  said = f"config.bridging.pretrained.{modality.name} is {path!r}"
  network = _bring(modality, path, said)
  z = jax.ShapeDtypeStruct((_BATCH, size), jnp.float32)
  remedy = f"as config.bridging.network.size={size} says; all prompts have one size"
  _check(f"{said}, whose encode makes", network.encode, network.params, _view(modality), z, remedy)
  directions = network._replace(encode=lambda params, x: unit(network.encode(params, x)))
  return PretrainedModule(directions, size, path)


def _bring(modality: Modality, path: str, said: str) -> Pretrained:
  """Calls the user's function."""
  if not re.fullmatch(r"\w+(\.\w+)*:\w+", path):
    raise UserError(f"{said}; it must be of the form my_package.my_module:function.")
  where, name = path.split(":")
  try:
    module = importlib.import_module(where)
  except ImportError as error:
    raise UserError(
      f"{said}, but {where} cannot be imported ({error}). It is looked for in the folder where you"
      " start the program, in PYTHONPATH and among what is installed."
    ) from error
  function = getattr(module, name, None)
  if not callable(function):
    raise UserError(f"{said}, but {module} has no function {name!r}.")
  network = function(modality)
  if not isinstance(network, Pretrained):
    raise UserError(
      f"{said}, which returned {type(network).__name__} for the modality {modality.name!r}; it must"
      f" return {Pretrained.__module__}.Pretrained."
    )
  return network


def _view(modality: Modality) -> jax.ShapeDtypeStruct:
  dtype = jnp.int32 if modality.num_classes else jnp.float32
  return jax.ShapeDtypeStruct((_BATCH, *modality.shape), dtype)


def _check(said, function, params, given, wanted, remedy) -> None:
  found = jax.eval_shape(function, params, given)
  if _words(found) != _words(wanted):
    raise UserError(
      f"{said} {_words(found)} of {_words(given)}; it must be {_words(wanted)}, {remedy}."
    )


def _words(found: Any) -> str:
  if not hasattr(found, "shape"):
    return f"a {type(found).__name__}"
  return f"{found.dtype} {list(found.shape)}"
