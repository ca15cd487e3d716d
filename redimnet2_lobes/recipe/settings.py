"""Checks of hyperparameters that are used as they are.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

TYPES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
}


def check_types(hparams, **types):
    """Checks values that are used as they are, so that none fails later.

    Arguments
    ---------
    hparams : dict
        The hyperparameters.
    **types : type
        For each key its type: str, int, float (which takes an int) or bool.

    Raises
    ------
    ValueError
        If a value has another type, or a text is empty.

    Example
    -------
    >>> check_types({"lr": 1, "name": "b0"}, lr=float, name=str)
    >>> check_types({"lr": "high"}, lr=float)
    Traceback (most recent call last):
    ValueError: lr: expected a number, not 'high'
    """
    for key, expected in types.items():
        value = hparams[key]
        fits = type(value) is expected
        if expected is float:
            fits = type(value) in (int, float)
        if not fits or value == "":
            raise ValueError(
                f"{key}: expected {TYPES[expected]}, not {value!r}"
            )


def check_at_least(hparams, **lowest):
    """Checks numbers against their lowest value.

    Arguments
    ---------
    hparams : dict
        The hyperparameters.
    **lowest : float
        For each key its lowest value.

    Raises
    ------
    ValueError
        If a value is lower.

    Example
    -------
    >>> check_at_least({"batch_size": 0}, batch_size=1)
    Traceback (most recent call last):
    ValueError: batch_size: 0 is less than 1
    """
    for key, limit in lowest.items():
        if not hparams[key] >= limit:
            raise ValueError(f"{key}: {hparams[key]} is less than {limit}")
