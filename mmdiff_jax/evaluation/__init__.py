"""How good what was generated is: classifiers, coherence, Frechet distances, tables, pictures."""
