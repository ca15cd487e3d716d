"""Voices of people: enrolling them, keeping them, knowing them again.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""
