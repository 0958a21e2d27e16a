"""How good generated modalities are: classifiers, coherence, Frechet distances, tables, pictures."""
