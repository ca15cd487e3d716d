"""Losses, schedules, batches, checkpoints, fine-tuning.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""
