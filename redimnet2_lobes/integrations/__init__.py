"""The models in the pipelines of other projects.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""
