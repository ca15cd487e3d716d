"""From corpora to crops: reading, shards, crops, augmentation.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""
