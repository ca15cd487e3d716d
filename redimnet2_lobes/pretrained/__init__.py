"""Model folders, published checkpoints, the hub.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""
