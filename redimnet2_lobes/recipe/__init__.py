"""What the scripts of a recipe share: command line, YAML, checks, encoders.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""
