"""From embeddings to scores, error rates, thresholds and plots.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""
