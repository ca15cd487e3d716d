"""Export to ExecuTorch, and running it.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""
