"""``python -m redimnet2_lobes`` is the command ``redimnet2``.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from redimnet2_lobes.command_line import main

if __name__ == "__main__":
    main()
