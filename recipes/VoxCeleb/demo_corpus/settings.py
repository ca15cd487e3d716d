"""All that decides the content of a corpus of real voices.

Authors
-------
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

# Raise it whenever the same settings begin to give another corpus.
FORMAT_VERSION = 1

# Recorded in corpus.json.
SETTINGS = {
    "seed": 2602,
    "sample_rate": 16000,
    "lowest_source_rate": 16000,
    "silent_peak": 1e-3,
    "trim_decibels_under_peak": [20.0, 35.0],
    "trim_decibels_over_noise": 10.0,
    "trim_margin_seconds": 0.1,
    "shortest_clip_seconds": 0.1,
    "longest_clip_seconds": 8.0,
    "utterance_seconds": 3.0,
    "gap_seconds": 0.1,
    "shortest_speaker_seconds": 20.0,
    "test_utterances_per_speaker": 12,
    "fewest_test_speakers": 12,
    "most_validation_trials": 3000,
    # Each has one voice with enough material, and no training speaker uses it.
    "test_languages": [
        *("he", "hu", "ar", "tn", "ml", "be", "bg"),
        *("ro", "gl", "wa", "sl", "nn", "nb", "cs", "pt_BR"),
    ],
}
