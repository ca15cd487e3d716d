"""Files that appear when complete, downloads, error lines, checks of settings.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""
