"""Image files on the host: finding, decoding, cropping."""

import warnings


def quiet_pil() -> None:
    """Silence PIL's warnings in this process; call it when a command or a worker starts.

    PIL warns of odd metadata in the middle of a progress bar. What matters is raised as an error.
    """
    warnings.filterwarnings('ignore', module=r'PIL\.')
