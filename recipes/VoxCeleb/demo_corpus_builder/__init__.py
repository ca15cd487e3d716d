"""The steps of ``prepare_demo_corpus.py``, one module for each.

``real_corpus`` is the way from packages to a corpus: it fetches them
(``debian_packages``), finds out who speaks in which file (``speakers``), reads
and trims the files (``clips``), divides the speakers and joins their clips
(``split``) and writes the result (``corpus_folder``). ``synthetic_corpus``
writes synthetic voices instead. ``settings`` holds all figures.

Authors
-------
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""
