"""Evaluation of generated samples: classifiers, coherence, Frechet distances, tables, pictures."""
