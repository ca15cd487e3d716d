"""The network: ReDimNet2, its front-end and parts, faster copies, variants.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""
