import numpy as np

from mmdiff_jax.data import mnist_svhn, sources


def _numbers(n, seed):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 10, n).astype(np.int32)
  # Each house shows its class and its own number.
  items = np.zeros((n, 32, 32, 3), np.uint8)
  items[:, 0, 0, 0], items[:, 0, 0, 1:] = labels, np.stack(np.divmod(np.arange(n), 256), 1)
  return sources.Source(items, labels)


def test_pairs_are_of_one_class_and_each_split_of_its_own_files(handwriting, monkeypatch):
  houses = {"train": _numbers(3000, 0), "test": _numbers(1500, 1)}
  monkeypatch.setattr(sources, "svhn", lambda split, data_dir, manual_dir: houses[split])
  for split, times in (("train", 20), ("test", 1)):
    data = mnist_svhn.load(split)
    written, built = handwriting[split], houses[split]
    shorter = np.minimum(np.bincount(written.labels), np.bincount(built.labels))
    np.testing.assert_array_equal(np.bincount(data["label"]), times * shorter)
    svhn, mnist = (np.round(data[name][:500] * 255).astype(int) for name in ("svhn", "mnist"))
    np.testing.assert_array_equal(svhn[:, 0, 0, 0], data["label"][:500])
    own = {item.tobytes(): label for item, label in zip(*written, strict=True)}
    assert [own[image.astype(np.uint8).tobytes()] for image in mnist] == data["label"][
      :500
    ].tolist()


def test_no_test_digit_comes_twice(handwriting, monkeypatch):
  monkeypatch.setattr(sources, "svhn", lambda *_: _numbers(1500, 1))
  index = mnist_svhn.load("test")["mnist"].index
  assert len(np.unique(index)) == len(index)


def test_real_digits_pair_with_the_subset_of_svhn(prepared, manual_folder, monkeypatch):
  subset = sources.svhn_mat(manual_folder / "svhn_subset" / "train_32x32_first1083.mat")
  monkeypatch.setattr(sources, "svhn", lambda *_: subset)
  data = mnist_svhn.load("test", prepared)
  assert 1000 < len(data["label"]) <= 1083
  for modality in mnist_svhn.MODALITIES[:2]:
    batch = data[modality.name][np.arange(16)]
    assert batch.shape == (16, *modality.shape) and batch.dtype == np.float32
    assert batch.min() >= 0 and batch.max() <= 1
