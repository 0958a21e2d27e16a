import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mcdm as config_lib
from mmdiff_jax import modalities as modalities_lib, solvers
from mmdiff_jax.errors import UserError
from mmdiff_jax.frameworks import base, mcdm
from mmdiff_jax.frameworks.mcdm import losses
from mmdiff_jax.frameworks.mcdm.composing import compose
from mmdiff_jax.frameworks.mcdm.model import make_expert, SPACE
from mmdiff_jax.frameworks.mcdm.sampling import make_denoiser, Term
from mmdiff_jax.frameworks.normalize import normalize

KEY = jax.random.key(0)


def show(x):
  return np.zeros((2, 2, 3), np.uint8)


SHAPE = (4, 6, 1)
IMAGE = modalities_lib.Modality("digit", "image", SHAPE, show)
SKETCH = modalities_lib.Modality("sketch", "image", SHAPE, show)
MASK = modalities_lib.Modality("mask", "mask", (4, 6), show, num_classes=3)
TEXT = modalities_lib.Modality("caption", "text", (7,), str, num_classes=5)
LABEL = modalities_lib.Modality("label", "label", (), str, num_classes=4)
ROWS = 5


def config_of(*names, **changes):
  config = config_lib.get_config("unconditional")
  config.modalities = ("digit", *names)
  config.network.update(
    {"width": 8, "multipliers": (1,), "attention": (), "head_channels": 8, "text_width": 4}
  )
  config.process.num = 20
  config.sampling.steps = 3
  config.training.update({"steps": 2, "batch_size": ROWS})
  config.unlock()
  for name, value in changes.items():
    *parents, leaf = name.split("__")
    functools.reduce(getattr, parents, config)[leaf] = value
  return config


def data(*modalities):
  rng = np.random.default_rng(0)
  return {
    m.name: rng.integers(0, m.num_classes, (ROWS, *m.shape)).astype(np.int32)
    if m.num_classes
    else rng.uniform(size=(ROWS, *m.shape)).astype(np.float32)
    for m in modalities
  }


def made(*conditions, **changes):
  """An expert, its framework, and parameters that are not at their zeros."""
  config = config_of(*(c.name for c in conditions), **changes)
  modalities = (IMAGE, *conditions)
  framework = mcdm.build(config, modalities)
  batch = {name: jnp.asarray(x) for name, x in data(*modalities).items()}
  (stage,) = framework.stages
  params = jax.jit(lambda key: stage.init(key, {}, batch))(KEY)
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(1)
  leaves = [x + 0.3 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
  return make_expert(config, modalities), framework, jax.tree.unflatten(tree, leaves)


def sampling(steps=3, solver=solvers.ancestral, **changes):
  return base.SamplerConfig(solver, steps, **changes)


def run(framework, params, given, num=ROWS, how=None):
  names = tuple(m.name for m in framework.modalities if m.name in given)
  targets = dict(framework.supported_tasks)[names]
  jitted = jax.jit(framework.sample, static_argnums=(3, 4, 5))
  return np.asarray(jitted(params, KEY, given, targets, num, how or sampling())["digit"])


# --- composition, with exact experts


@dataclasses.dataclass(frozen=True)
class Exact:
  """In place of a network: the eps of z ~ N(0, s^2) given some x_i = z + s d_i n; s = 0.2."""

  schedule: object
  deviations: dict
  scale: float = 0.2

  def apply(self, params, z, t, known, *args, **kwargs):
    del params, args, kwargs
    scale = self.scale
    precision, total = 1 / scale**2, 0.0
    for name, (flag, x) in known.items():
      share = flag.reshape(-1, 1, 1, 1) / (scale * self.deviations[name]) ** 2
      precision, total = precision + share, total + share * x
    mean, variance = total / precision, 1 / precision
    t = jnp.asarray(t).reshape(-1, 1, 1, 1)
    alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
    return sigma * (z - alpha * mean) / (alpha**2 * variance + sigma**2)


def exact(deviations, **changes):
  pixel = (1, 1, 1)
  modalities = [
    modalities_lib.Modality(name, "image", pixel, show) for name in ("digit", *deviations)
  ]
  config = config_of(*deviations, process__num=1000, prediction="eps", **changes)
  expert = make_expert(config, modalities)
  return dataclasses.replace(expert, network=Exact(expert.schedule, deviations))


def make_sampler_config(**changes):
  """As the config of the experts has it, but for the changes."""
  config = config_lib.get_config().copy_and_resolve_references()
  config.sampling.corrector.update(changes.pop("corrector", {}))
  config.sampling.update(changes)
  return base.make_sampler_config(config)


@pytest.mark.parametrize(
  ("deviations", "tolerance"),
  [((1.0, 1.0), 0.02), ((0.5, 0.5, 0.5), 0.02), ((0.1, 0.1, 0.1), 0.08)],
)
def test_corrected_composition_has_the_law_of_the_posterior(deviations, tolerance):
  """As far as 120 steps go, where the variance without corrections is a half or a third of it."""
  names = [f"x{i}" for i in range(len(deviations))]
  experts = {"all": exact({})} | {n: exact({n: d}) for n, d in zip(names, deviations, strict=True)}
  framework = compose(experts, {"all": 1.0}, [Term(n, (n,)) for n in names])
  rows = 40_000
  # x_i = 0.1 in the value's units, half a deviation of z.
  given = {name: jnp.full((rows, 1, 1, 1), 0.55) for name in names}
  params = dict.fromkeys(experts, {"network": {}})
  true = 1 / (1 + sum(d**-2 for d in deviations))
  z = (
    2 * run(framework, params, given, rows, make_sampler_config(steps=120, corrector={"num": 4}))
    - 1
  )
  assert z.var() == pytest.approx(0.2**2 * true, rel=tolerance)
  assert z.mean() == pytest.approx(0.1 * (1 - true), rel=0.02)
  if deviations == (1.0, 1.0):
    # Without corrections the ODE's law is another: prod v_i.
    ode = run(framework, params, given, rows, make_sampler_config(steps=100, solver="heun"))
    assert 4 * ode.var() == pytest.approx(0.2**2 * 0.25, rel=0.02)


def test_shares_and_weights_add_up_as_by_hand():
  """eps = (1 - w) (b_1 eps_1 + b_2 eps_2) + w eps_x."""
  wide = exact({})
  narrow = dataclasses.replace(wide, network=Exact(wide.schedule, {}, 0.1))
  experts = {"a": wide, "b": narrow, "x": exact({"x": 1.0})}
  params = dict.fromkeys(experts, {"network": {}})
  known = {"x": jnp.full((1, 1, 1, 1), 0.1)}
  x, t = {SPACE: jnp.full((1, 1, 1, 1), 0.3)}, {SPACE: jnp.float32(0.4)}

  def eps(unconditional, *terms):
    denoiser = make_denoiser(experts, params, known, unconditional, terms, clip=False)
    return float(denoiser(x, t)[1][SPACE].squeeze())

  term = Term("x", ("x",), 1.5)
  shares = {"a": 0.25, "b": 0.75}
  base_eps = 0.25 * eps({"a": 1.0}) + 0.75 * eps({"b": 1.0})
  assert eps(shares) == pytest.approx(base_eps, rel=1e-5)
  alone = eps({}, term._replace(weight=1.0))
  assert eps(shares, term) == pytest.approx(-0.5 * base_eps + 1.5 * alone, rel=1e-4)
  assert abs(base_eps - eps({"a": 1.0})) > 0.01


def test_x0_is_kept_in_its_range_unless_that_would_change_a_law():
  experts = {"all": exact({}), "x": exact({"x": 0.1})}
  params = dict.fromkeys(experts, {"network": {}})
  known = {"x": jnp.full((1, 1, 1, 1), 0.9)}
  x, t = {SPACE: jnp.full((1, 1, 1, 1), 1.2)}, {SPACE: jnp.float32(0.5)}
  schedule = experts["all"].schedule
  for clip in (True, False):
    terms = [Term("x", ("x",), 3.0)]
    x0, eps = make_denoiser(experts, params, known, {"all": 1.0}, terms, clip=clip)(x, t)
    whole = schedule.alpha(t["z"]) * x0["z"] + schedule.sigma(t["z"]) * eps["z"]
    np.testing.assert_allclose(whole, x["z"], rtol=1e-4)
    assert (float(x0["z"].squeeze()) == 1.0) == clip
  assert make_sampler_config().clip
  assert not make_sampler_config(corrector={"num": 1}).clip


def test_experts_of_one_network_are_one_call():
  calls = []

  class Counting(Exact):
    def apply(self, *args, **kwargs):
      calls.append(1)
      return super().apply(*args, **kwargs)

  deviations = {"x": 1.0, "y": 0.5}
  expert = exact(deviations, absent_prob=0.5)
  expert = dataclasses.replace(expert, network=Counting(expert.schedule, deviations))
  known = {name: jnp.full((1, 1, 1, 1), 0.1) for name in deviations}
  x, t = {SPACE: jnp.zeros((1, 1, 1, 1))}, {SPACE: jnp.float32(0.5)}
  for runs, expected in ((("a", "a", "a"), 1), (("a", "b", "a"), 2), (("a", "b", "c"), 3)):
    experts = dict.fromkeys(runs, expert)
    terms = [Term(runs[1], ("x",)), Term(runs[2], ("y",))]
    params = dict.fromkeys(experts, {"network": {}})
    make_denoiser(experts, params, known, {runs[0]: 1.0}, terms, clip=True)(x, t)
    assert len(calls) == expected
    calls.clear()


@dataclasses.dataclass(frozen=True)
class Corners:
  """The eps of two pixels at 1/2 or -1/2 each, of which an expert may know its own one's sign."""

  schedule: object
  pixel: int

  def apply(self, params, z, t, known):
    alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
    mean = 0.5 * jnp.tanh(0.5 * alpha * z / sigma**2)
    for _, x in known.values():
      mean = mean.at[:, 0, self.pixel].set(x[:, 0, self.pixel])
    return (z - alpha * mean) / sigma


def test_separable_mixture_ends_in_the_right_cell():
  shape = (1, 2, 1)
  digit, *conditions = (
    modalities_lib.Modality(name, "image", shape, show) for name in ("digit", "first", "second")
  )
  experts = {}
  for pixel, shown in enumerate([(conditions[0],), (conditions[1],), ()]):
    config = config_of(*(c.name for c in shown), prediction="eps")
    expert = make_expert(config, (digit, *shown))
    experts[str(pixel)] = dataclasses.replace(expert, network=Corners(expert.schedule, pixel))
  terms = [Term("0", ("first",)), Term("1", ("second",))]
  framework = compose(experts, {"2": 1.0}, terms)
  rows = 1000
  sign = np.random.default_rng(0).choice([0.25, 0.75], (rows, 1, 2, 1)).astype(np.float32)
  given = {"first": sign, "second": sign}
  params = dict.fromkeys(experts, {"network": {}})
  x = run(framework, params, given, rows, sampling(20))
  np.testing.assert_allclose(x, sign, atol=1e-3)
  # With one of them the other pixel is open, and by a negative weight it is avoided.
  x = run(framework, params, {"first": sign}, rows, sampling(20))
  np.testing.assert_allclose(x[:, :, 0], sign[:, :, 0], atol=1e-3)
  assert np.mean(np.abs(x - sign)[:, :, 1] < 0.1) == pytest.approx(0.5, abs=0.06)
  away = compose(experts, {"2": 1.0}, [terms[0], terms[1]._replace(weight=-2.0)])
  x = run(away, params, given, rows, sampling(20))
  assert np.mean((x > 0.5)[:, :, 1] != (sign > 0.5)[:, :, 1]) > 0.9


def test_weight_may_change_on_the_way():
  deviations = {"x": 1.0}
  experts = {"all": exact({}), "x": exact(deviations)}
  params = dict.fromkeys(experts, {"network": {}})
  known = {"x": jnp.full((1, 1, 1, 1), 0.1)}
  x = {SPACE: jnp.full((1, 1, 1, 1), 0.05)}

  def eps(weight, time):
    terms = [Term("x", ("x",), weight)]
    denoiser = make_denoiser(experts, params, known, {"all": 1.0}, terms, clip=False)
    return float(denoiser(x, {SPACE: jnp.float32(time)})[1][SPACE].squeeze())

  changing = jax.tree_util.Partial(lambda t: 3 * t[SPACE])
  for time in (0.2, 0.6):
    assert eps(changing, time) == pytest.approx(eps(3 * time, time), rel=1e-4)


# --- experts with a network


CONDITIONS = (SKETCH, MASK, TEXT, LABEL)


def test_every_condition_is_seen_and_its_flag_hides_it():
  expert, _, params = made(*CONDITIONS)
  z, t = jax.random.normal(KEY, (ROWS, *SHAPE)), jnp.full(ROWS, 0.5)
  values = {
    c.name: normalize(c, x) for c, x in zip(CONDITIONS, data(*CONDITIONS).values(), strict=True)
  }
  apply = jax.jit(functools.partial(expert.network.apply, params["network"], z, t))
  none = apply({})
  for name, value in values.items():
    hidden = apply({name: (jnp.zeros(1), value)})
    np.testing.assert_allclose(hidden, none, atol=1e-5)
    first = apply({name: (jnp.eye(ROWS)[0], value)})
    np.testing.assert_allclose(first[1:], none[1:], atol=1e-5)
    assert np.abs(first[0] - none[0]).max() > 1e-3


def test_alone_an_expert_is_its_composition():
  expert, framework, params = made(SKETCH, LABEL)
  given = data(SKETCH, LABEL)
  composed = compose({"run": expert}, {}, [Term("run", ("sketch", "label"))])
  np.testing.assert_array_equal(
    run(framework, params, given), run(composed, {"run": params}, given)
  )
  assert framework.supported_tasks == ((("sketch", "label"), ("digit",)),)


def test_one_network_for_several_conditions_is_as_several_networks():
  expert, framework, params = made(SKETCH, TEXT, absent_prob=0.5)
  assert [given for given, _ in framework.supported_tasks] == [
    (), ("sketch",), ("caption",), ("sketch", "caption"),
  ]  # fmt: skip
  given = data(SKETCH, TEXT)
  one = compose({"a": expert}, {"a": 1.0}, [Term("a", ("sketch",)), Term("a", ("caption",))])
  several = compose(
    dict.fromkeys("abc", expert),
    {"a": 1.0},
    [Term("b", ("sketch",)), Term("c", ("caption",))],
  )
  np.testing.assert_allclose(
    run(one, {"a": params}, given),
    run(several, dict.fromkeys("abc", params), given),
    atol=1e-5,
  )
  # By itself it is shown both at once.
  together = run(framework, params, given)
  assert np.abs(together - run(one, {"a": params}, given)).max() > 1e-3


def test_guidance_of_one_expert_is_its_weight():
  expert, framework, params = made(SKETCH, absent_prob=0.5)
  given = data(SKETCH)
  composed = compose({"a": expert}, {"a": 1.0}, [Term("a", ("sketch",), 2.0)])
  np.testing.assert_array_equal(
    run(framework, params, given, how=sampling(guidance=2.0)), run(composed, {"a": params}, given)
  )
  with pytest.raises(UserError, match="absent_prob is 0"):
    _, framework, params = made(SKETCH)
    run(framework, params, given, how=sampling(guidance=2.0))


def test_evaluations_count_every_branch():
  expert, framework, _ = made(SKETCH, TEXT, absent_prob=0.5)
  both, how = ("sketch", "caption"), sampling(10)
  assert framework.evaluations((), ("digit",), how) == 10
  assert framework.evaluations(both, ("digit",), how) == 10
  guided = dataclasses.replace(how, guidance=2.0)
  assert framework.evaluations(both, ("digit",), guided) == 20
  terms = [Term("a", ("sketch",)), Term("a", ("caption",))]
  composed = compose({"a": expert}, {"a": 1.0}, terms)
  assert composed.evaluations(both, ("digit",), how) == 30
  assert composed.evaluations(("sketch",), ("digit",), how) == 10
  # Weights that sum to 1 leave nothing to the unconditional model.
  halves = compose({"a": expert}, {}, [t._replace(weight=0.5) for t in terms])
  assert halves.evaluations(both, ("digit",), how) == 20


def test_report_shows_all_conditions():
  _, framework, params = made(SKETCH, absent_prob=0.5)
  shown = framework.stages[0].report(params, KEY, data(IMAGE, SKETCH))
  assert {tag: set(x) for tag, x in shown.items()} == {
    "unconditional": {"digit"}, "from_sketch": {"digit", "sketch"},
  }  # fmt: skip


# --- training


def test_loss_of_the_exact_expert_is_the_variance_of_the_noise():
  """The mean over the table of Var(eps | z_t, x), which no other network has less than."""
  expert = exact({"x": 0.5})
  rows = 200_000
  z, n = jax.random.normal(KEY, (2, rows, 1, 1, 1))
  batch = {"digit": 0.5 + 0.1 * z, "x": 0.5 + 0.1 * (z + 0.5 * n)}
  t = np.arange(1, 1001) / 1000
  alpha, sigma = (
    np.asarray(f(jnp.asarray(t))) for f in (expert.schedule.alpha, expert.schedule.sigma)
  )
  variance = 0.2**2 * 0.2
  expected = np.mean(alpha**2 * variance / (alpha**2 * variance + sigma**2))
  params = {"network": {}}
  loss = float(losses.loss(expert, params, KEY, batch)[0])
  assert loss == pytest.approx(expected, rel=0.01)
  for wrong in (0.9, 1.1):
    network = Exact(expert.schedule, {"x": 0.5 * wrong})
    assert (
      float(losses.loss(dataclasses.replace(expert, network=network), params, KEY, batch)[0]) > loss
    )


def test_absent_conditions_are_shown_in_their_share():
  seen = []

  class Spy:
    def apply(self, params, z, t, known, *args, **kwargs):
      seen.append({name: np.asarray(flag) for name, (flag, _) in known.items()})
      return z

  for prob in (0.0, 0.3):
    expert = make_expert(config_of("sketch", "label", absent_prob=prob), (IMAGE, SKETCH, LABEL))
    batch = {n: np.repeat(x, 4000, 0) for n, x in data(IMAGE, SKETCH, LABEL).items()}
    losses.loss(dataclasses.replace(expert, network=Spy()), {"network": {}}, KEY, batch)
    both = seen[-1]["sketch"] * seen[-1]["label"]
    assert both.mean() == pytest.approx((1 - prob) ** 2, abs=0.01)
    assert seen[-1]["label"].mean() == pytest.approx(1 - prob, abs=0.01)


def test_v_is_what_its_denoiser_reads():
  """A network that says the true v of known data: whatever the time, x0 is the data."""
  config = config_of(prediction="v")
  expert = make_expert(config, (IMAGE,))
  x0 = 2 * jnp.asarray(data(IMAGE)["digit"]) - 1

  class Oracle:
    def apply(self, params, z, t, *args, **kwargs):
      t = jnp.asarray(t).reshape(-1, 1, 1, 1)
      alpha, sigma = expert.schedule.alpha(t), expert.schedule.sigma(t)
      return alpha * (z - alpha * x0) / sigma - sigma * x0

  expert = dataclasses.replace(expert, network=Oracle())
  batch = {"digit": data(IMAGE)["digit"]}
  assert float(losses.loss(expert, {"network": {}}, KEY, batch)[0]) < 1e-6
  composed = compose({"a": expert}, {"a": 1.0}, [])
  out = run(composed, {"a": {"network": {}}}, {})
  np.testing.assert_allclose(out, data(IMAGE)["digit"], atol=1e-4)


# --- bad input


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"process__betas": "none"}, "linear, cosine"),
    ({"prediction": "none"}, "eps, v"),
    ({"absent_prob": 1.0}, "absent_prob is 1.0"),
    ({"main": "sketch_"}, "config.main is 'sketch_'"),
    ({"sampling__solver": "none"}, "ancestral"),
    ({"sampling__guidance": 2.0}, "guidance is 2. .*absent_prob is 0"),
    ({"sampling__order": (("digit",),)}, "no order"),
    ({"sampling__corrector": {"num": 1, "snr": 0.5}}, "must be num, leapfrog and snr"),
    ({"process__betas": "linear", "process__num": 100}, "leaves 0.6 of the image"),
  ],
)
def test_bad_configs_are_refused(changes, message):
  with pytest.raises(UserError, match=message):
    mcdm.build(config_of("sketch", **changes), (IMAGE, SKETCH))


def test_condition_of_another_size_is_refused():
  other = modalities_lib.Modality("sketch", "image", (8, 8, 1), show)
  with pytest.raises(UserError, match=r"'sketch'.*\(8, 8, 1\).*\(4, 6, 1\)"):
    mcdm.build(config_of("sketch"), (IMAGE, other))


def test_experts_that_do_not_fit_are_named():
  def expert(*conditions, image=IMAGE, **changes):
    config = config_of(*(c.name for c in conditions), **changes)
    return make_expert(config, (image, *conditions))

  plain = expert()
  other_image = modalities_lib.Modality("other", "image", IMAGE.shape, show)
  wide = modalities_lib.Modality("digit", "image", (4, 8, 1), show)
  longer = modalities_lib.Modality("caption", "text", (9,), str, num_classes=5)
  richer = modalities_lib.Modality("caption", "text", (7,), str, num_classes=6)
  for other, message in (
    (expert(process__num=30), r"runs/b does not fit runs/a: the schedule is .*num=30.*num=20"),
    (expert(prediction="eps"), "runs/b does not fit runs/a: the prediction is 'eps'"),
    (expert(image=other_image, main="other"), "runs/b does not fit runs/a: the image is 'other'"),
    (expert(image=wide), r"runs/b does not fit runs/a: the image's shape is \(4, 8, 1\)"),
  ):
    with pytest.raises(UserError, match=message):
      compose({"runs/a": plain, "runs/b": other}, {"runs/a": 1.0}, [])
  for other, message in ((longer, r"text of shape \(9,\)"), (richer, "of 6 classes")):
    with pytest.raises(UserError, match=f"runs/b reads 'caption' as .*{message}.*runs/a as text"):
      compose({"runs/a": expert(TEXT), "runs/b": expert(other)}, {}, [])


def test_compositions_that_cannot_be_are_refused():
  expert, _, _ = made(SKETCH, LABEL)
  always = make_expert(config_of(), (IMAGE,))
  experts = {"a": expert, "b": always}
  for unconditional, terms, message in (
    ({"a": 1.0}, [], "expert a cannot do without sketch, label"),
    ({"b": 1.0}, [Term("a", ("sketch",))], "expert a cannot do without label"),
    ({"b": 1.0}, [Term("a", ("mask",))], "expert a has no condition 'mask'"),
    ({"b": 0.7}, [], "sum to 0.7"),
  ):
    with pytest.raises(UserError, match=message):
      compose(experts, unconditional, terms)
  term = Term("a", ("sketch", "label"), 2.0)
  with pytest.raises(UserError, match="The experts a need an unconditional model"):
    compose(experts, {}, [term])


def test_what_is_given_is_checked():
  expert, framework, params = made(SKETCH)
  other_shape = {"sketch": np.zeros((ROWS, 4, 5, 1), np.float32)}
  with pytest.raises(UserError, match=r"'sketch' of what is given to .*\(4, 5, 1\)"):
    run(framework, params, other_shape)
  always = make_expert(config_of(), (IMAGE,))
  composed = compose({"a": expert, "b": always}, {"b": 1.0}, [Term("a", ("sketch",))])
  with pytest.raises(UserError, match="'sketch' of what is given to the expert a"):
    composed.sample({}, KEY, other_shape, ("digit",), ROWS, sampling())
  with pytest.raises(UserError, match="No expert that can be used takes 'label'.*a \\(sketch\\)"):
    composed.sample({}, KEY, data(SKETCH, LABEL), ("digit",), ROWS, sampling())
  with pytest.raises(UserError, match="--weights"):
    composed.sample({}, KEY, data(SKETCH), ("digit",), ROWS, sampling(guidance=2.0))


def test_examples_that_lack_a_condition_are_refused():
  _, framework, _ = made(SKETCH)
  batch = data(IMAGE, SKETCH) | {"sketch_present": np.arange(ROWS) > 0}
  with pytest.raises(UserError, match="lack the modality 'sketch'"):
    framework.stages[0].prepare({}, batch)
