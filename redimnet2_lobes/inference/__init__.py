"""Embeddings of many utterances and of long files, kept on disk.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""
