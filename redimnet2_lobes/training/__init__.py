"""Brain, losses, schedules, batches, checkpoints, validation, fine-tuning.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""
