"""Files that appear when they are complete, downloads, error lines.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""
