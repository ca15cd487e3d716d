"""Embeddings of many utterances and of long files, and their cache.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""
