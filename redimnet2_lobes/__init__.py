"""ReDimNet2 speaker encoders as SpeechBrain lobes.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""
